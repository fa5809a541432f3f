#!/bin/bash
#SBATCH --job-name=dco-eval
#SBATCH --array=0-7
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=%x-%a.log
# Eight tasks sample and grade one run, each its own part, on whatever machines they get.
#
#   sbatch examples/scaling/slurm_array.sh MODEL DATASET RUN
#   sbatch --dependency=afterok:JOB --wrap "dco-trl report RUN"      # when all tasks have ended
#
# RUN is on a file system that all machines share. A task that was preempted or killed goes on where it was; to start
# the third and the sixth once more: sbatch --array=2,5 examples/scaling/slurm_array.sh MODEL DATASET RUN
set -euo pipefail
shards=8  # as in --array; not SLURM_ARRAY_TASK_COUNT, which is 2 where two tasks are started once more
model=$1
dataset=$2
run=$3
# SQLite is not safe on a shared file system, and a home folder often is on one.
dco-trl eval --shard "$SLURM_ARRAY_TASK_ID/$shards" --model "$model" --dataset "$dataset" --output "$run" \
    --sampler vllm --num-samples 10000 --max-tokens 512 --grader math --verdict-cache "${TMPDIR:-/tmp}/dco-verdicts"
