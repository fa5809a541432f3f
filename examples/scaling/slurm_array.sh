#!/bin/bash
#SBATCH --job-name=dco-eval
#SBATCH --array=0-7
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=%x-%a.log
# Eight tasks draw 1,250 samples each of every problem, and grade them, each into a run of its own: they share nothing.
#
#   sbatch examples/scaling/slurm_array.sh MODEL DATASET RUN
#   dco-trl merge RUN.* --output RUN      # when all tasks have ended; then: dco-trl report RUN
#
# A task that was preempted or killed goes on where it was; to start the third and the sixth once more:
# sbatch --array=2,5 examples/scaling/slurm_array.sh MODEL DATASET RUN
set -euo pipefail
model=$1
dataset=$2
run=$3.$SLURM_ARRAY_TASK_ID
dco-trl sample --model "$model" --dataset "$dataset" --output "$run" --sampler vllm --max-tokens 512 \
    --num-samples 1250 --first-sample $((SLURM_ARRAY_TASK_ID * 1250))
# SQLite is not safe on a shared file system, and a home folder often is on one.
dco-trl grade "$run" --grader math --verdict-cache "${TMPDIR:-/tmp}/dco-verdicts"
