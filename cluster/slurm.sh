#!/usr/bin/env bash
# A search on the nodes of a Slurm allocation. The repository is in a folder that all nodes see, with `make setup` done.
#   sbatch cluster/slurm.sh --setting resnet18-cifar100 --data-root /shared/data
# The arguments are the search's. Ended by the time limit? The same line with --resume goes on.
#SBATCH --job-name=tune-adamsrt
#SBATCH --nodes=4               # CHOOSE
#SBATCH --ntasks-per-node=1     # one Ray per node
#SBATCH --gpus-per-node=4       # CHOOSE
#SBATCH --cpus-per-task=32      # CHOOSE
#SBATCH --time=24:00:00         # CHOOSE
#SBATCH --no-kill               # a node that fails does not end the job
#SBATCH --exclusive             # `ray stop` at the end would end other Ray processes of yours on the node
#SBATCH --output=slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run it with sbatch}"   # the repository; runs/ and mlflow.db are written there
export PATH="$PWD/.venv/bin:$PATH" RAY_USAGE_STATS_ENABLED=0

# Other users share the network: Ray asks every process for this token, which your home folder brings to every node.
export RAY_AUTH_MODE=token
[ -s ~/.ray/auth_token ] || ray get-auth-token --generate >/dev/null
chmod 600 ~/.ray/auth_token   # Ray writes it readable for everyone
export RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=3   # a lost node is noticed soon

export TUNE_ADAMSRT_MPS=${TUNE_ADAMSRT_MPS:-0}   # 1: NVIDIA's MPS for trials that share a GPU, see cluster/README.md

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
addresses=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes%%[[:space:]]*}" hostname -I)
address=${addresses%% *}   # CHOOSE: the first of the first node's; another one where the nodes meet on another network

# Starts Ray on every node, waits for all of them, runs the search on the first, and stops Ray.
# shellcheck disable=SC2016 # expanded on the node
srun --no-kill bash -euc '. cluster/mps.sh; exec ray symmetric-run "$@"' _ --address "$address:6379" --min-nodes "$SLURM_NNODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --object-store-memory 200000000 \
  -- python -m tune_adamsrt.search --address "$address:6379" "$@"
