"""One run of SmolLM2 with LoRA on MATH's short problems, direct answers: the held-out answers' log p by epoch."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from dco_trl import DCOConfig, DCOTrainer
from dco_trl.trainer.eval_log_p import EVAL_LOG_P_NAME

NUM_TRAIN, NUM_HELD_OUT, BATCH_SIZE = 256, 250, 16
SETTINGS: dict[str, Any] = dict(
    per_device_train_batch_size=BATCH_SIZE,
    per_device_eval_batch_size=50,
    learning_rate=1e-3,
    lr_scheduler_type="cosine",
    warmup_steps=8,
    adam_beta2=0.99,
)
LORA: dict[str, Any] = dict(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def train(model: str, dataset: str, num_attempts: int, repeat: int, seed: int, num_epochs: int) -> dict[str, Any]:
    """One training.

    Args:
        model: Folder or name.
        dataset: JSON lines of prompt and completion.
        num_attempts: N.
        repeat: The same problems with another order of batches and other first weights of the adapter.
        seed: Which problems, and in what order.
        num_epochs: Epochs.

    Returns:
        A JSON-serialisable record: for each epoch, `tokens` trained on until then, `dead`, the share of what was
        trained on with a weight below .1, and `log_p` of each held-out answer.
    """
    rows = load_dataset("json", data_files=dataset, split="train").shuffle(seed=seed)
    with TemporaryDirectory(prefix="schedule-smollm2-") as folder:
        args = DCOConfig(
            folder,
            num_attempts=num_attempts,
            num_train_epochs=num_epochs,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_only_model=True,
            logging_steps=math.ceil(NUM_TRAIN / BATCH_SIZE),
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            seed=seed + 1000 * repeat,
            **SETTINGS,
        )
        trainer = DCOTrainer(
            AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
            args=args,
            train_dataset=rows.select(range(NUM_TRAIN)),
            eval_dataset=rows.select(range(NUM_TRAIN, NUM_TRAIN + NUM_HELD_OUT)),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=LoraConfig(**LORA),
        )
        log_p = HeldOut()
        trainer.add_callback(log_p)
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens": [entry["num_tokens"] for entry in logs],
        "dead": [entry["weight_below_0.1"] for entry in logs],
        "log_p": log_p.of_epochs,
    }


class HeldOut(TrainerCallback):
    """The held-out answers' log p after each epoch, as the checkpoints have them."""

    def __init__(self) -> None:
        self.of_epochs: list[list[float]] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = pq.read_table(Path(args.output_dir, f"checkpoint-{state.global_step}", EVAL_LOG_P_NAME))
        assert found["row"].to_pylist() == list(range(NUM_HELD_OUT))
        self.of_epochs.append([round(value, 5) for value in found["log_p"].to_pylist()])
