"""What the model card says beyond TRL's: the number of attempts, the last evaluation, the base model of a folder."""

import re
from pathlib import Path
from typing import Any

from transformers import Trainer

from .trl_contract import get_config_model_id

CITATION = """\
@inproceedings{chen2025rethinking,
  title     = {Rethinking Fine-Tuning when Scaling Test-Time Compute:
               Limiting Confidence Improves Mathematical Reasoning},
  author    = {Chen, Feng and Ravent{\\'o}s, Allan and Cheng, Nan and Ganguli, Surya and Druckmann, Shaul},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  eprint    = {2502.07154},
  archivePrefix = {arXiv}
}"""

_METRIC = re.compile(r"eval_(?:(?P<set>.+)_)?(?P<name>coverage|pass)@(?P<k>\d+)")
_TITLES = {"coverage": "exact coverage of the reference answers", "pass": "pass@k of graded samples"}
# What TRL's template writes for a base model, and for a trained one, that is on no hub.
_NO_BASE, _NO_MODEL = "[None](https://huggingface.co/None)", 'model="None"'


def complete_model_card(path: Path, trainer: Trainer, num_attempts: int, num_required: int = 1) -> None:
    """Add to TRL's card what a reader wants to know of DCO first."""
    model: Any = trainer.model
    base = get_config_model_id(model.config)
    name = f"`{Path(base).resolve().name}`" if base else "a model without a name"
    text = path.read_text(encoding="utf-8").replace(_NO_BASE, name)
    text = text.replace(_NO_MODEL, f'model="{path.resolve().parent.name}"')
    trained = (
        f"It was trained with N = {num_attempts} attempts, to be sampled {num_attempts} times for each problem"
        f"{f', of which at least {num_required} must be right' if num_required > 1 else ''}"
        if num_attempts > 1
        else "It was trained with N = 1 attempt, which is cross-entropy: the baseline of Direct Coverage Optimization"
    )
    section = f"{trained}.\n\n{_curves(trainer.state.log_history)}### Framework versions"
    path.write_text(text.replace("### Framework versions", section, 1), encoding="utf-8")


def _curves(log_history: list[dict[str, Any]]) -> str:
    """A table of each coverage curve of the last evaluation."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    last_step = None
    for entry in log_history:
        for key, value in entry.items():
            metric = _METRIC.fullmatch(key)
            if metric is None:
                continue
            if entry["step"] != last_step:
                found, last_step = {}, entry["step"]
            found.setdefault((metric["name"], metric["set"] or ""), {})[int(metric["k"])] = value
    tables = []
    for (name, dataset), curve in found.items():
        ks = sorted(curve)
        where = f" of the evaluation set `{dataset}`" if dataset else ""
        tables.append(
            f"Last evaluation{where} (step {last_step}), {_TITLES[name]}:\n\n"
            f"| k | {' | '.join(map(str, ks))} |\n|---|{'---|' * len(ks)}\n"
            f"| {name}@k | {' | '.join(f'{curve[k]:.1%}' for k in ks)} |\n\n"
        )
    return "".join(tables)
