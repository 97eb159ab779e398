#!/usr/bin/env bash
# A study on Slurm: `sbatch cluster/slurm.sh STUDY [options of pretune run]`, from a folder that all nodes share.
# Ray's head runs on the first node of the allocation, a worker on each; the study's driver beside the head.
# Before the time limit Slurm sends this script SIGTERM: stages write their state, and the job queues itself again and
# goes on. To stop for good: `pretune stop OUT` on the first node, or `scancel JOB`, after which work since the last
# state (at most a minute of each stage) is done again when the study is run again.
#SBATCH --job-name=pretune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=pretune-%j.log
set -euo pipefail
study=${1:?give a study file}
shift

# Where nodes have several networks, the one by which all reach each other (`ip -br address`); stages on several workers
# hang or fail on another.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# source .venv/bin/activate        # or: module load ...

patience=${PRETUNE_START_SECONDS:-300} # for all nodes to join
umask 077
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(openssl rand -hex 32) # for this allocation alone; srun hands it to the nodes in their environment
export RAY_AUTH_TOKEN
export RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=25     # of a SIGTERM to `ray start`; Slurm's KillWait is 30 s by default
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK      # from Slurm 22.05 on srun does not take it over from sbatch

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# The address by which another node knows the first: on its own, a name often stands for 127.0.1.1.
head=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[-1]}" getent ahostsv4 "${nodes[0]}" | awk 'NR == 1 {print $1}')
# Ten ports of this job's own below those that systems assign (32768 and more): a host may have several users' Rays. The
# server of Ray Client, which nothing here uses, cannot be turned off.
port=$((20000 + SLURM_JOB_ID % 1200 * 10))
ray=(ray start --block --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats
    --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=$((port + 3)))

fail() {
    echo "error: $1" >&2
    exit 1
}

asked='' driver='' steps=()
clean_up() { # Ray on all nodes, then its sockets and logs there
    trap '' TERM
    kill "${steps[@]}" 2> /dev/null || true
    wait "${steps[@]}" 2> /dev/null || true
    srun --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --overlap rm -rf "$RAY_TMPDIR" || true
}
trap clean_up EXIT
trap 'asked=1; [[ -z $driver ]] || kill -TERM "$driver"' TERM

srun --nodes=1 --ntasks=1 --overlap --nodelist="${nodes[0]}" "${ray[@]}" --head \
    --node-ip-address="$head" --port="$port" --ray-client-server-port=$((port + 1)) \
    --dashboard-host=127.0.0.1 --dashboard-port=$((port + 2)) &
steps=($!)
alive() { # nodes of the cluster; 0 while the head does not answer
    timeout 60 python -P -c 'if True:
        import ray, sys
        ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
        print(sum(node["Alive"] for node in ray.nodes()))' "$head:$port" 2> /dev/null || echo 0
}
wait_for() { # so many nodes
    local found step
    while found=$(alive) && ((found < $1)); do
        [[ -z $asked ]] || fail "asked to end before the study began"
        for step in "${steps[@]}"; do
            kill -0 "$step" 2> /dev/null || fail "ray start ended on a node; its lines above say why"
        done
        ((SECONDS < patience)) || fail "$found of ${#nodes[@]} nodes joined Ray's head at $head:$port within $patience s; \
are ports $port to $((port + 3)) open between nodes? PRETUNE_START_SECONDS=600 waits longer"
        sleep 2
    done
}
wait_for 1
if ((${#nodes[@]} > 1)); then
    others=$(IFS=,; echo "${nodes[*]:1}")
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --overlap --nodelist="$others" \
        "${ray[@]}" --address="$head:$port" &
    steps+=($!)
    wait_for "${#nodes[@]}"
fi

python -P -m pretune run "$study" --address "$head:$port" "$@" &
driver=$!
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2> /dev/null; do # the signal ended the wait, not the driver
    code=0
    wait "$driver" || code=$?
done
# 130: the driver stopped as it was asked to; 143: the signal met it before it listened, or as it ended.
if [[ -n $asked ]] && ((code == 130 || code == 143)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
