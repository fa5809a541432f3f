"""Write MATH as direct answers: prompt-completion JSON lines, one problem per line.

From the hub, or from JSON lines with the columns `problem` (or `question`) and `answer`:

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

For a cheap run, `--tokenizer` and `--max_tokens` keep the rows of at most so many tokens (prompt, completion, end of
sequence together), and `--num_rows` keeps the first so many of those. Rows without an answer are dropped and counted.

Data: Hendrycks et al., "Measuring Mathematical Problem Solving With the MATH Dataset", arXiv 2103.03874. MIT.
"""

from prepare import prepare

INSTRUCTION = "Give only the final answer to the question, without any steps."


def to_prompt_completion(row: dict) -> dict:
    """The space before the answer belongs to the completion: tokenizers join it to the word that follows."""
    question = row.get("problem") or row["question"]
    return {
        "prompt": f"{INSTRUCTION}\n\nQuestion: {question.strip()}\nAnswer:",
        "completion": f" {row['answer'].strip()}",
        "answer": row["answer"].strip(),
    }


def main() -> None:
    prepare(__doc__, to_prompt_completion)


if __name__ == "__main__":
    main()
