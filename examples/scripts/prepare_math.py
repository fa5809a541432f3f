"""Write MATH as direct answers: prompt-completion JSON lines, one problem a line.

From the hub, or from JSON lines with the columns `problem` and `answer`:

```bash
python examples/scripts/prepare_math.py --dataset nlile/hendrycks-MATH-benchmark \\
    --split train --output data/math/train.jsonl
python examples/scripts/prepare_math.py --dataset nlile/hendrycks-MATH-benchmark \\
    --split test --output data/math/test.jsonl
python examples/scripts/prepare_math.py --dataset my/problems.jsonl --output data/math/train.jsonl
```

The split is that of the paper (Chen et al., arXiv 2502.07154): 12,000 problems to train on, MATH-500 to test on.
A row:

```json
{"prompt": "Give … any steps.\\n\\nQuestion: What is $2+2$?\\nAnswer:", "completion": " 4", "answer": "4", "id": "…"}
```

`--tokenizer` and `--max_tokens` keep the rows of at most so many tokens, prompt, completion and end of sequence
together, for a cheap run. Rows without an answer are dropped; the number is printed.

Data: Hendrycks et al., "Measuring Mathematical Problem Solving With the MATH Dataset", arXiv 2103.03874. MIT.
"""

import argparse
from pathlib import Path

from datasets import Dataset, load_dataset

INSTRUCTION = "Give only the final answer to the question, without any steps."


def to_prompt_completion(row: dict) -> dict:
    """The space before the answer belongs to the completion: tokenizers join it to the word that follows."""
    return {
        "prompt": f"{INSTRUCTION}\n\nQuestion: {row['problem'].strip()}\nAnswer:",
        "completion": f" {row['answer'].strip()}",
        "answer": row["answer"].strip(),
    }


def load(name: str, split: str) -> Dataset:
    if name.endswith((".json", ".jsonl")):
        return load_dataset("json", data_files=name, split="train")
    return load_dataset(name, split=split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="Name on the hub, or a JSON-lines file.")
    parser.add_argument("--split", default="train", help="Split of a dataset on the hub. Default: train.")
    parser.add_argument("--output", required=True, help="JSON-lines file to write.")
    parser.add_argument("--tokenizer", help="Name or folder of the tokenizer that counts for --max_tokens.")
    parser.add_argument("--max_tokens", type=int, help="Keep rows of at most so many tokens.")
    args = parser.parse_args()
    if (args.max_tokens is None) != (args.tokenizer is None):
        parser.error("--max_tokens needs --tokenizer, and the other way round")
    if args.dataset.endswith((".json", ".jsonl")) and not Path(args.dataset).is_file():
        parser.error(f"--dataset: there is no file {args.dataset}")

    dataset = load(args.dataset, args.split)
    missing = {"problem", "answer"} - set(dataset.column_names)
    if missing:
        parser.error(f"--dataset: {args.dataset} has the columns {dataset.column_names}, not {sorted(missing)}")
    answered = dataset.filter(lambda row: bool(row["answer"] and row["answer"].strip()))
    kept = answered.map(
        to_prompt_completion, remove_columns=[c for c in dataset.column_names if c not in ("id", "unique_id")]
    )
    if args.max_tokens is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        kept = kept.filter(
            # + 1: the end of sequence, which TRL appends.
            lambda row: len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 <= args.max_tokens
        )
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    kept.to_json(args.output, force_ascii=False)
    print(
        f"{args.output}: {len(kept)} rows; of {len(dataset)}, {len(dataset) - len(answered)} had no answer"
        + (f" and {len(answered) - len(kept)} more than {args.max_tokens} tokens" if args.max_tokens else "")
    )


if __name__ == "__main__":
    main()
