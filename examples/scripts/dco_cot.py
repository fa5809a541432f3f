"""Fine-tune a language model on chains of thought for coverage, with success rates from sampled rationales.

Chen et al., "Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves Mathematical
Reasoning", NeurIPS 2025, arXiv 2502.07154.

LoRA on one GPU, with vLLM on the same card:

```bash
python examples/scripts/dco_cot.py \\
    --model_name_or_path Qwen/Qwen2.5-1.5B \\
    --dataset_name data/gsm8k/train.jsonl \\
    --eval_strategy no \\
    --num_attempts 64 \\
    --sampler vllm \\
    --grader math \\
    --use_peft --lora_r 32 --lora_target_modules all-linear \\
    --learning_rate 1.0e-4 \\
    --num_train_epochs 4 \\
    --per_device_train_batch_size 16 \\
    --gradient_accumulation_steps 8 \\
    --output_dir runs/qwen2.5-1.5b-gsm8k-cot-dco
```

`examples/scripts/prepare_gsm8k.py` writes the data: `prompt`, `completion` (rationale and answer) and `answer`. The
arguments are those of `dco-trl train` and of `CoTDCOConfig`; `--config` takes the `*-cot*.yaml` recipes in
`examples/recipes/`. Several GPUs: `accelerate launch examples/scripts/dco_cot.py … --sampler server --sampler_kwargs
'{"base_url": "http://HOST:8000/v1"}'`.
"""

import sys

from dco_trl import CoTDCOConfig
from dco_trl.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], CoTDCOConfig))
