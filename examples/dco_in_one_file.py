"""Direct Coverage Optimization in one file, with PyTorch and Transformers alone: about three minutes on a CPU core.

    python examples/dco_in_one_file.py

A tiny Llama learns two-digit multiplication, answered at once, from 1,500 problems: with cross-entropy, and with DCO
for 256 attempts. After every few epochs the table has the coverage of 500 held-out problems: the probability that at
least one of k samples is right. Cross-entropy's pass@256 falls while its pass@1 rises; DCO's does not.

For those who read code before documentation. `dco_trl.DCOTrainer` is this inside TRL's `SFTTrainer`, and
`tests/test_one_file.py` holds the two to the same numbers. Chen et al., arXiv 2502.07154.
"""

import argparse
import math

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

CHARACTERS = "*=0123456789"
PAD, END = 0, 1
KS = (1, 16, 256, 4096)


# ---- the method -----------------------------------------------------------------------------------------------------


def log_coverage(log_p: Tensor, n: int) -> Tensor:
    """log(1 - (1-p)^n): the log-probability that at least one of n samples is the answer.

    (1-p)^n is exp(n log(1-p)), and the probabilities of answers are far too small to be subtracted from 1 as they are.
    """
    log_miss = n * torch.log1p(-log_p.exp().clamp(max=1 - 1e-15))
    return torch.where(log_miss < -1e-12, torch.log(-torch.expm1(log_miss)), math.log(n) + log_p)


def coverage_weight(log_p: Tensor, n: int) -> Tensor:
    """F(n, p) = n p (1-p)^(n-1) / (1 - (1-p)^n), by which DCO multiplies the gradient of -log p.

    It is d(-log coverage) / d(-log p): 1 for n = 1; near 1 where n samples would not find the answer; near 0 where
    they would, so that nothing is pushed further that n attempts find anyway.
    """
    log_miss = torch.log1p(-log_p.exp().clamp(max=1 - 1e-15))
    return (math.log(n) + log_p + (n - 1) * log_miss - log_coverage(log_p, n)).exp()


def answer_log_p(model: LlamaForCausalLM, ids: Tensor, is_answer: Tensor) -> Tensor:
    """Log-probability of each row's whole answer, its end of sequence included, shape (rows,), in float64."""
    logits = model(input_ids=ids).logits[:, :-1]
    per_token = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return torch.where(is_answer[:, 1:], per_token, 0.0).double().sum(dim=1)


def dco_loss(model: LlamaForCausalLM, ids: Tensor, is_answer: Tensor, n: int) -> Tensor:
    """The weighted cross-entropy of a batch, a mean over answer tokens; its gradient is that of -log coverage."""
    log_p = answer_log_p(model, ids, is_answer)
    weight = coverage_weight(log_p.detach(), n)
    return -(weight * log_p).sum() / is_answer.sum()


# ---- the task -------------------------------------------------------------------------------------------------------


def encode(text: str) -> list[int]:
    return [CHARACTERS.index(character) + 2 for character in text]


def make_rows(pairs: list[list[int]]) -> tuple[Tensor, Tensor]:
    """`47*86=4042` and its end as token ids, padded to one length, and which of them are the answer's."""
    texts = [(f"{a}*{b}=", str(a * b)) for a, b in pairs]
    rows = [encode(prompt + answer) + [END] for prompt, answer in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    is_answer = torch.tensor(
        [[len(prompt) <= t < len(row) for t in range(width)] for (prompt, _), row in zip(texts, rows, strict=True)]
    )
    return ids, is_answer


def make_problems(num_train: int, num_held_out: int, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Problems to train on, in either order, and held-out ones, in neither of whose orders any is trained on."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.tensor([[a, b] for a in range(10, 100) for b in range(a, 100)])
    pairs = pairs[torch.randperm(len(pairs), generator=generator)]
    rest = torch.cat([pairs[num_held_out:], pairs[num_held_out:].flip(1)]).unique(dim=0)
    rest = rest[torch.randperm(len(rest), generator=generator)[:num_train]]
    return make_rows(rest.tolist()), make_rows(pairs[:num_held_out].tolist())


def make_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=2 + len(CHARACTERS),
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


# ---- training and the table -----------------------------------------------------------------------------------------


@torch.no_grad()
def measure(model: LlamaForCausalLM, ids: Tensor, is_answer: Tensor) -> list[float]:
    """Exact coverage for each of `KS`, in per cent: no sampling is needed where p is known."""
    log_p = torch.cat([answer_log_p(model, *part) for part in zip(ids.split(100), is_answer.split(100), strict=True)])
    return [100 * log_coverage(log_p, k).exp().mean().item() for k in KS]


def train(n: int, num_epochs: int, num_train: int = 1500, num_held_out: int = 500, seed: int = 0) -> list[list[float]]:
    """Train for n attempts (1 is cross-entropy), and return what `measure` gives after each epoch."""
    (ids, is_answer), held_out = make_problems(num_train, num_held_out, seed)
    model = make_model(seed)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    # A strong decay slows memorising, of cross-entropy too; the rate falls over the last 15 % of the steps.
    groups = [{"params": matrices, "weight_decay": 1.0}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.99))
    batch_size = 64
    num_steps = num_epochs * math.ceil(len(ids) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (num_steps - step) / (0.15 * num_steps))
    )
    curve = []
    for epoch in range(num_epochs):
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for rows in order.split(batch_size):
            dco_loss(model, ids[rows], is_answer[rows], n).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        curve.append(measure(model, *held_out))
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_attempts", type=int, default=256, help="N, what DCO trains for.")
    parser.add_argument("--epochs", type=int, default=34, help="Epochs of each run.")
    parser.add_argument("--num_train", type=int, default=1500, help="Problems to train on.")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tiny matrices gain nothing from threads
    runs = {n: train(n, args.epochs, args.num_train) for n in (1, args.num_attempts)}
    print("pass@k of held-out problems, %\n" + f"{'epoch':>5}" + f"{'cross-entropy':>34}{'DCO':>32}")
    print(" " * 5 + "".join(f"{f'@{k}':>8}" for _ in runs for k in KS))
    for epoch in range(args.epochs):
        if (epoch + 1) % max(1, args.epochs // 8) == 0 or epoch + 1 == args.epochs:
            print(f"{epoch + 1:5}" + "".join(f"{value:8.1f}" for curve in runs.values() for value in curve[epoch]))


if __name__ == "__main__":
    main()
