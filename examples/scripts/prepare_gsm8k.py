"""Write GSM8K as chains of thought: prompt-completion JSON lines, one problem per line.

From the hub; or from a folder with `train.jsonl` (and `test.jsonl`) or one file, with the columns `problem` (or
`question`), `answer` and, unless the answer holds it before "####", `solution`:

```bash
python examples/scripts/prepare_gsm8k.py --dataset openai/gsm8k --output_dir data/gsm8k
python examples/scripts/prepare_gsm8k.py --dataset my/problems.jsonl --output_dir data/gsm8k
```

`train.jsonl`, `validation.jsonl` (500 of the training problems) and `test.jsonl` have no problem in common. A row:

```json
{"prompt": "Question: …\\nAnswer:", "completion": " She sold 48/2 = 24 clips in May.\\n…\\n#### 72", "answer": "72"}
```

The calculator's annotations (`<<48/2=24>>`) are left out. For a cheap run, `--tokenizer` and `--max_tokens` keep the
rows of at most so many tokens, and `--num_rows` keeps the first so many of those to train on.

Data: Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168. MIT.
"""

import re

from prepare import prepare


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


def main() -> None:
    prepare(__doc__, to_prompt_completion, config="main")


if __name__ == "__main__":
    main()
