"""The loss alone, against the two published ways of computing it: time, and peak memory.

    python benchmarks/loss.py --output loss.json

From hidden states and the output layer's weight to their gradients, with a vocabulary of 128,256 (Llama 3's):

- dco_trl: TRL's chunked log-probabilities, summed by answer, weighted by the detached F;
- weight: full logits, log-softmax in float32, gathered, F times the mean NLL of each answer (the released code of
  arXiv 2502.07154 computes this);
- autograd: full logits, log-softmax in float32, gathered, summed by answer, -log(1 - (1-p)^N) with autograd through it
  (the loss of arXiv 2604.24957).

Both are written here from their formulas, not copied. Each measurement of memory is a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time

import torch
from measure import environment, peak_resident_bytes, ratio_summary
from trl.kernels import ChunkedLogProbFunction

from dco_trl import coverage_weight
from dco_trl.trainer.segments import Segments

VOCABULARY, HIDDEN, NUM_ATTEMPTS = 128_256, 256, 256
# name: answers, tokens each
SHAPES = {"32 answers x 8 tokens": (32, 8), "16 answers x 64 tokens": (16, 64), "8 answers x 256 tokens": (8, 256)}
CHUNK = 32_768  # TRL's own


def dco_trl_loss(hidden, weight, labels):
    flat, *_ = ChunkedLogProbFunction.apply(
        hidden.reshape(-1, hidden.size(-1)), weight, None, labels.reshape(-1), 1.0, CHUNK, None, 1.0, ("log_probs",)
    )
    log_probs = flat.view(labels.shape)
    segments = Segments.rows(torch.ones_like(labels, dtype=torch.bool))
    weights = coverage_weight(segments.sum(log_probs.detach()), NUM_ATTEMPTS, validate=False)
    return -(segments.expand(weights).float() * log_probs).sum() / labels.numel()


def full_log_probs(hidden, weight, labels):
    return (hidden @ weight.T).float().log_softmax(-1).gather(-1, labels[..., None])[..., 0]


def weight_loss(hidden, weight, labels):
    log_probs = full_log_probs(hidden, weight, labels)
    p = log_probs.detach().sum(-1).double().exp()
    f = NUM_ATTEMPTS * p * (1 - p) ** (NUM_ATTEMPTS - 1) / (1 - (1 - p) ** NUM_ATTEMPTS).clamp(min=1e-300)
    return (torch.where(p > 0, f, 1.0).float() * -log_probs.mean(-1)).mean()


def autograd_loss(hidden, weight, labels):
    log_p = full_log_probs(hidden, weight, labels).sum(-1).double()
    tiny = log_p < -37
    safe = torch.where(tiny, -1.0, log_p)
    exact = -torch.log(-torch.expm1(NUM_ATTEMPTS * torch.log1p(-torch.exp(safe))))
    return torch.where(tiny, -log_p, exact).mean().float()


LOSSES = {"dco_trl": dco_trl_loss, "weight": weight_loss, "autograd": autograd_loss}


def inputs(answers: int, tokens: int, hidden_size: int = HIDDEN, vocabulary: int = VOCABULARY):
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    hidden = torch.randn(answers, tokens, hidden_size, device=device, dtype=dtype, requires_grad=True)
    weight = (torch.randn(vocabulary, hidden_size, device=device, dtype=dtype) * 0.02).requires_grad_()
    labels = torch.randint(vocabulary, (answers, tokens), device=device)
    return hidden, weight, labels


def seconds(name: str, arguments) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    torch.autograd.grad(LOSSES[name](*arguments), arguments[:2])
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(name: str, shape: str) -> int:
    """What the loss and its gradients add to the peak memory of this process, in bytes."""
    arguments = inputs(*SHAPES[shape])
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        seconds(name, arguments)
        return torch.cuda.max_memory_allocated() - before
    before = peak_resident_bytes()
    seconds(name, arguments)
    return peak_resident_bytes() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=4, help="interleaved rounds of time for each shape")
    parser.add_argument("--memory-rounds", type=int, default=2, help="interleaved rounds of memory for each shape")
    parser.add_argument("--peak-memory", nargs=2, metavar=("LOSS", "SHAPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_memory:
        print(peak_memory(*args.peak_memory))
        return
    rows = []
    for shape in SHAPES:
        arguments = inputs(*SHAPES[shape])
        times = {name: [] for name in LOSSES}
        for i in range(args.rounds + 1):
            for name in list(LOSSES)[:: 1 if i % 2 else -1]:
                times[name].append(seconds(name, arguments))
        del arguments
        peaks = {name: [] for name in LOSSES}
        for _ in range(args.memory_rounds):
            for name, values in peaks.items():
                command = [sys.executable, __file__, "--peak-memory", name, shape]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                values.append(int(done.stdout.split()[-1]))
        for rival in ("weight", "autograd"):
            time_row = ratio_summary(times["dco_trl"][1:], times[rival][1:])
            memory_row = ratio_summary(peaks["dco_trl"], peaks[rival])
            rows.append({"shape": shape, "rival": rival, "time": time_row, "memory": memory_row})
            print(
                f"{shape:24} against {rival:8}  time {time_row['median']:.2f} "
                f"[{time_row['q25']:.2f}, {time_row['q75']:.2f}]   peak memory {memory_row['median']:.3f} "
                f"[{memory_row['q25']:.3f}, {memory_row['q75']:.3f}]",
                flush=True,
            )
    if args.output:
        with open(args.output, "w") as file:
            record = {"benchmark": "loss alone, dco_trl / published ways", "vocabulary": VOCABULARY, "hidden": HIDDEN}
            json.dump({**record, **environment(), "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
