#!/bin/bash
# One address for every GPU of a machine: vLLM starts a copy of the model per GPU and shares the requests out.
#
#   bash examples/scaling/serve_data_parallel.sh MODEL [GPUS] [ADAPTER]
#   dco-trl sample --sampler server --base-url http://HOST:8000/v1 --sampler-kwargs '{"concurrency": 256}' …
#
# A sampler asks for 32 samples per request and keeps `concurrency` requests in flight: enough of them for all copies.
set -euo pipefail
model=$1
gpus=${2:-8}
adapter=${3:-}
arguments=(--port 8000 --data-parallel-size "$gpus" --max-model-len 2048 --generation-config vllm)
if [[ -n $adapter ]]; then
    # Loaded at the start, in every copy; sample it with `--adapter tuned`.
    arguments+=(--enable-lora --max-lora-rank 64 --lora-modules "tuned=$adapter")
fi
exec vllm serve "$model" "${arguments[@]}"
