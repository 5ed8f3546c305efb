#!/bin/bash
# Predictions of many posts as a Slurm array: `sbatch examples/slurm_predict.sh`, in the folder of the posts.
# Each task scores every 64th unit. Slurm queues a preempted task again; after whatever else has happened (the
# time was up, a machine died), `sbatch` of the same file scores what is missing.
#SBATCH --job-name=psy-agents
#SBATCH --array=1-64
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
set -euo pipefail

# Written out, as SLURM_ARRAY_TASK_COUNT is another number where some tasks alone are submitted again.
SHARDS=64

exec psy-agents predict checkpoint=outputs/checkpoints/best_checkpoint.pt 'data.posts=posts/*.parquet' \
    output=scores shard="$SLURM_ARRAY_TASK_ID/$SHARDS"

# When all are done, once:
#   psy-agents merge scores output=predictions.parquet
