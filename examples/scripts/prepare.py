"""What `prepare_math.py` and `prepare_gsm8k.py` share: their arguments, and the way from rows to JSON lines."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

IDS = ("id", "unique_id")


def prepare(doc: str, to_prompt_completion: Callable[[dict], dict], config: str | None = None) -> None:
    """Read `--dataset`, turn its rows into prompt-completion rows, and write those that are asked for.

    Args:
        doc: The script's description.
        to_prompt_completion: Makes `prompt`, `completion` and `answer` of a row.
        config: Configuration of a data set on the hub.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="Name on the hub, or a JSON-lines file.")
    parser.add_argument("--split", default="train", help="Split of a dataset on the hub. Default: train.")
    parser.add_argument("--output", required=True, help="JSON-lines file to write.")
    parser.add_argument("--num_rows", type=int, help="Keep the first so many rows.")
    parser.add_argument("--tokenizer", help="Name or folder of the tokenizer that counts for --max_tokens.")
    parser.add_argument("--max_tokens", type=int, help="Keep rows of at most so many tokens.")
    args = parser.parse_args()
    if (args.max_tokens is None) != (args.tokenizer is None):
        parser.error("--max_tokens needs --tokenizer, and the other way round")
    if args.num_rows is not None and args.num_rows < 1:
        parser.error(f"--num_rows must be at least 1, got {args.num_rows}")
    from_file = args.dataset.endswith((".json", ".jsonl"))
    if from_file and not Path(args.dataset).is_file():
        parser.error(f"--dataset: there is no file {args.dataset}")

    if from_file:
        dataset: Any = load_dataset("json", data_files=args.dataset, split="train")
    else:
        dataset = load_dataset(args.dataset, config, split=args.split)
    columns = set(dataset.column_names)
    missing = [wanted for wanted in (("problem", "question"), ("answer",)) if not columns & set(wanted)]
    if missing:
        parser.error(
            f"--dataset: {args.dataset} has the columns {dataset.column_names}, and none is named "
            + " or ".join(map(repr, missing[0]))
        )
    answered: Dataset = dataset.filter(lambda row: bool(row["answer"] and row["answer"].strip()))
    rows = answered.map(to_prompt_completion, remove_columns=[c for c in dataset.column_names if c not in IDS])
    short = rows
    if args.max_tokens is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        short = rows.filter(
            # + 1: the end of sequence, which TRL appends.
            lambda row: len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 <= args.max_tokens
        )
    kept = short if args.num_rows is None else short.select(range(min(args.num_rows, len(short))))
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    kept.to_json(args.output, force_ascii=False)
    print(
        f"{args.output}: {len(kept):,} rows; of {len(dataset):,}, {len(dataset) - len(answered):,} had no answer"
        + (f" and {len(rows) - len(short):,} more than {args.max_tokens} tokens" if args.max_tokens else "")
    )
