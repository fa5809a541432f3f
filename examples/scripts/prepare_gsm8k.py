"""Write GSM8K as chains of thought: prompt-completion JSON lines, one problem a line.

From the hub, or from JSON lines with the columns `problem` (or `question`), `solution` and `answer`:

```bash
python examples/scripts/prepare_gsm8k.py --dataset openai/gsm8k --split train --output data/gsm8k/train.jsonl
python examples/scripts/prepare_gsm8k.py --dataset openai/gsm8k --split test --output data/gsm8k/test.jsonl
python examples/scripts/prepare_gsm8k.py --dataset my/problems.jsonl --output data/gsm8k/train.jsonl
```

A row:

```json
{"prompt": "Question: …\\nAnswer:", "completion": " She sold 48/2 = 24 clips in May.\\n…\\n#### 72", "answer": "72"}
```

The calculator's annotations (`<<48/2=24>>`) are left out. `--num_rows` keeps the first so many rows.

Data: Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168. MIT.
"""

import argparse
import re
from pathlib import Path

from datasets import Dataset, load_dataset


def to_prompt_completion(row: dict) -> dict:
    """The space before the rationale belongs to the completion: tokenizers join it to the word that follows."""
    question = row.get("problem") or row["question"]
    # On the hub, `answer` holds rationale and answer, with "####" between them.
    rationale, _, answer = row["answer"].rpartition("####")
    rationale = re.sub(r"<<.*?>>", "", row.get("solution") or rationale).strip()
    return {
        "prompt": f"Question: {question.strip()}\nAnswer:",
        "completion": f" {rationale}\n#### {answer.strip()}",
        "answer": answer.strip().replace(",", ""),
    }


def load(name: str, split: str) -> Dataset:
    if name.endswith((".json", ".jsonl")):
        return load_dataset("json", data_files=name, split="train")
    return load_dataset(name, "main", split=split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="Name on the hub, or a JSON-lines file.")
    parser.add_argument("--split", default="train", help="Split of a dataset on the hub. Default: train.")
    parser.add_argument("--output", required=True, help="JSON-lines file to write.")
    parser.add_argument("--num_rows", type=int, help="Keep the first so many rows.")
    args = parser.parse_args()
    if args.dataset.endswith((".json", ".jsonl")) and not Path(args.dataset).is_file():
        parser.error(f"--dataset: there is no file {args.dataset}")

    raw = load(args.dataset, args.split)
    if args.num_rows is not None:
        raw = raw.select(range(min(args.num_rows, len(raw))))
    data = raw.map(to_prompt_completion, remove_columns=raw.column_names)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    data.to_json(args.output)
    print(f"{len(data):,} problems written to {args.output}")


if __name__ == "__main__":
    main()
