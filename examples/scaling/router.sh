#!/bin/bash
# One address, http://THIS_MACHINE:8000/v1, before several independent `vllm serve` (pip install vllm-router).
#
#   bash examples/scaling/router.sh http://gpu1:8000 http://gpu2:8000
#   dco-trl sample --sampler server --base-url http://THIS_MACHINE:8000/v1 --sampler-kwargs '{"concurrency": 256}' …
#
# All servers have the same model under the same name, and adapters from the start (`--lora-modules tuned=DIR`, sampled
# with `--adapter tuned`): one that is loaded through this address reaches one server only. Requests carry seeds of
# their own, so no server repeats another's draws. The sampler itself repeats what fails.
set -euo pipefail
exec vllm-router --host 0.0.0.0 --port 8000 --policy power_of_two --disable-retries --request-timeout-secs 1800 \
    --worker-urls "$@"
