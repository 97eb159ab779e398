#!/usr/bin/env bash
# Runs on a spot node of AWS: turns the two minutes' notice into Ray's drain. Stages then write their state and leave,
# nothing new is placed here, and the study takes them up elsewhere.
set -u
meta=${PRETUNE_METADATA:-http://169.254.169.254/latest}
while sleep "${PRETUNE_LOOK_SECONDS:-5}"; do
    token=$(curl -fsS -m 2 -X PUT "$meta/api/token" -H 'X-aws-ec2-metadata-token-ttl-seconds: 60') || continue
    curl -fsS -m 2 -o /dev/null -H "X-aws-ec2-metadata-token: $token" "$meta/meta-data/spot/instance-action" 2> /dev/null || continue
    RAY_AUTH_MODE=token ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION \
        --reason-message "AWS takes this spot node back" --deadline-remaining-seconds 110 && exit 0
done
