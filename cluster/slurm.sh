#!/usr/bin/env bash
# A study on Slurm: `sbatch cluster/slurm.sh STUDY [options of pretune run]`, from a folder that all nodes share.
# Ray's head runs on the first node of the allocation, a worker on each; the study's driver beside the head.
# Before the time limit Slurm sends SIGTERM: stages write their state, and the job queues itself again and goes on.
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

# source .venv/bin/activate        # or: module load ...

umask 077
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(openssl rand -hex 32) # for this allocation alone; srun hands it to the nodes in their environment
export RAY_AUTH_TOKEN
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 20000))
head=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')
export RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID

srun --nodes=1 --ntasks=1 --overlap --nodelist="${nodes[0]}" \
    ray start --head --block --node-ip-address="$head" --port="$port" --dashboard-host=127.0.0.1 \
    --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats &
until ray status --address "$head:$port" > /dev/null 2>&1; do sleep 2; done
if ((${#nodes[@]} > 1)); then
    others=$(IFS=,; echo "${nodes[*]:1}")
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --overlap --nodelist="$others" \
        ray start --block --address="$head:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats &
fi

python -m pretune run "$study" --address "$head:$port" "$@" &
driver=$!
trap 'kill -TERM $driver' TERM
code=0
wait $driver || code=$?
if kill -0 $driver 2> /dev/null; then # the wait ended by the signal, not by the driver
    wait $driver || code=$?
fi
((code == 130)) && scontrol requeue "$SLURM_JOB_ID"
exit $code
