"""What `prepare_math.py` and `prepare_gsm8k.py` share: their arguments, the split, and the way to JSON lines."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dco_trl.problem import DataError
from dco_trl.runs.rows import is_file, load_with_datasets, read_dataset, split_files

IDS = ("id", "unique_id")


def prepare(doc: str, to_prompt_completion: Callable[[dict], dict], config: str | None = None) -> None:
    """Read `--dataset`, turn its rows into prompt-completion rows, split them, and write a file for each split.

    Splits that the data set has are kept; those that it lacks are drawn from `train`, with a seed. No prompt is in
    two of them.

    Args:
        doc: The script's description.
        to_prompt_completion: Makes `prompt`, `completion` and `answer` of a row.
        config: Configuration of a data set on the hub.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="Name on the hub, a file, or a folder with train.jsonl.")
    parser.add_argument("--output_dir", required=True, help="Folder for train.jsonl, validation.jsonl and test.jsonl.")
    parser.add_argument("--num_validation", type=int, default=500, help="Rows to take from train. Default: 500.")
    parser.add_argument("--num_test", type=int, default=500, help="The same, where there is no test split.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the split. Default: 0.")
    parser.add_argument("--num_rows", type=int, help="Keep the first so many rows of train.")
    parser.add_argument("--tokenizer", help="Name or folder of the tokenizer that counts for --max_tokens.")
    parser.add_argument("--max_tokens", type=int, help="Keep rows of at most so many tokens.")
    args = parser.parse_args()
    if (args.max_tokens is None) != (args.tokenizer is None):
        parser.error("--max_tokens needs --tokenizer, and the other way round")
    for name, least in (("num_rows", 1), ("num_validation", 0), ("num_test", 0)):
        if (value := getattr(args, name)) is not None and value < least:
            parser.error(f"--{name} must be at least {least}, got {value}")
    try:
        found = _load(args.dataset, config)
    except DataError as error:
        parser.error(f"--dataset: {error}")
    if "train" not in found:
        parser.error(f"--dataset: {args.dataset} has no split 'train', only {sorted(found)}")
    for wanted in (("problem", "question"), ("answer",)):
        if not set(columns := found["train"].column_names) & set(wanted):
            names = " or ".join(map(repr, wanted))
            parser.error(f"--dataset: {args.dataset} has the columns {columns}, and none is named {names}")

    splits = {
        split: _rows(found[split], to_prompt_completion) for split in ("train", "validation", "test") if split in found
    }
    for split, wanted_rows in (("test", args.num_test), ("validation", args.num_validation)):
        if split not in splits and wanted_rows:
            if wanted_rows >= (num_train := len(splits["train"])):
                parser.error(
                    f"--num_{split} {wanted_rows} would leave nothing of {num_train} rows with an answer: lower it"
                )
            order = np.random.default_rng(args.seed).permutation(num_train)
            rows = splits["train"]
            splits[split] = [rows[i] for i in sorted(order[:wanted_rows])]
            splits["train"] = [rows[i] for i in sorted(order[wanted_rows:])]
    tokenizer = None if args.tokenizer is None else _tokenizer(args.tokenizer)
    output, elsewhere = Path(args.output_dir), set[str]()
    output.mkdir(parents=True, exist_ok=True)
    for split in ("test", "validation", "train"):
        if split not in splits:
            continue
        own = [row for row in splits[split] if row["prompt"] not in elsewhere]
        elsewhere |= {row["prompt"] for row in own}
        kept = own if tokenizer is None else _short(own, tokenizer, args.max_tokens)
        told = f"{len(splits[split]) - len(own):,} were in another split, {len(own) - len(kept):,} too long"
        kept = kept[: args.num_rows] if split == "train" else kept
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        (output / f"{split}.jsonl").write_text(text, encoding="utf-8")
        print(f"{output / split}.jsonl: {len(kept):,} rows of {len(splits[split]):,} with an answer; {told}")


def _load(name: str, config: str | None) -> Any:
    files = {"train": Path(name)} if is_file(Path(name)) else split_files(Path(name))
    return {split: read_dataset(file) for split, file in files.items()} or load_with_datasets(name, config)


def _rows(dataset: Any, to_prompt_completion: Callable[[dict], dict]) -> list[dict]:
    answered = [row for row in dataset if row["answer"] and row["answer"].strip()]
    return [{**{name: row[name] for name in IDS if name in row}, **to_prompt_completion(row)} for row in answered]


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def _short(rows: list[dict], tokenizer: Any, max_tokens: int) -> list[dict]:
    # + 1: the end of sequence, which TRL appends.
    return [row for row in rows if len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 <= max_tokens]
