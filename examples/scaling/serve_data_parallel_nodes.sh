#!/bin/bash
# One address for the GPUs of several machines, with 8 GPUs each. Run this on every one; rank 0 has the address.
#
#   bash examples/scaling/serve_data_parallel_nodes.sh MODEL MACHINES RANK ADDRESS_OF_RANK_0
set -euo pipefail
model=$1
machines=$2
rank=$3
address=$4
gpus=8
arguments=(
    --data-parallel-size $((machines * gpus)) --data-parallel-size-local $gpus
    --data-parallel-address "$address" --data-parallel-rpc-port 13345 --max-model-len 2048
)
if ((rank > 0)); then
    arguments+=(--headless --data-parallel-start-rank $((rank * gpus)))
else
    arguments+=(--port 8000 --generation-config vllm)
fi
exec vllm serve "$model" "${arguments[@]}"
