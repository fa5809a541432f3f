#!/bin/bash
#SBATCH --job-name=dco-sample
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log
# 32 engines on four machines draw one run: Ray starts on all of them, the command on the first, and both end together.
#
#   sbatch examples/scaling/slurm_ray.sh MODEL DATASET RUN
#
# Stopped or preempted, the same command goes on. `ray symmetric-run` waits 30 s for all machines, and refuses to start
# where Ray runs already.
set -euo pipefail
model=$1
dataset=$2
run=$3
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_NNODES" -- \
    dco-trl sample --model "$model" --dataset "$dataset" --output "$run" --sampler vllm --max-tokens 512 \
    --num-samples 10000 --ray-workers $((SLURM_NNODES * 8))
