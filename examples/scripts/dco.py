"""Fine-tune a language model with Direct Coverage Optimization, where you would have used TRL's `sft.py`.

Chen et al., "Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves Mathematical
Reasoning", NeurIPS 2025, arXiv 2502.07154.

Full fine-tuning:

```bash
accelerate launch examples/scripts/dco.py \\
    --model_name_or_path Qwen/Qwen2.5-0.5B \\
    --dataset_name data/math/train.jsonl \\
    --eval_dataset_name data/math/test.jsonl \\
    --num_attempts 256 \\
    --learning_rate 2.0e-5 \\
    --num_train_epochs 4 \\
    --per_device_train_batch_size 16 \\
    --gradient_accumulation_steps 8 \\
    --eval_strategy epoch \\
    --output_dir runs/qwen2.5-0.5b-math-dco
```

LoRA: add `--use_peft --lora_r 16 --lora_target_modules all-linear --learning_rate 2.0e-4`.

`examples/scripts/prepare_math.py` writes the two files. This is `dco-trl train`: the same arguments, and
`--config` with the recipes in `examples/recipes/`. To change what it does, start from `dco_trl/cli/train.py`.
"""

import sys

from dco_trl.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
