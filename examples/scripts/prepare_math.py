"""Write MATH as direct answers: prompt-completion JSON lines, one problem per line.

From the hub; or from a folder with `train.jsonl` (and `test.jsonl`) or one file, with the columns `problem` (or
`question`) and `answer`:

```bash
python examples/scripts/prepare_math.py --dataset nlile/hendrycks-MATH-benchmark --output_dir data/math
python examples/scripts/prepare_math.py --dataset my/problems.jsonl --output_dir data/math
```

`train.jsonl`, `validation.jsonl` and `test.jsonl` have no problem in common. The test problems are MATH-500, as in the
paper (Chen et al., arXiv 2502.07154); 500 of its 12,000 training problems are for validation (`--num_validation 0`
leaves them in training, as the paper does). A row:

```json
{"prompt": "Give … any steps.\\n\\nQuestion: What is $2+2$?\\nAnswer:", "completion": " 4", "answer": "4", "id": "…"}
```

For a cheap run, `--tokenizer` and `--max_tokens` keep the rows of at most so many tokens (prompt, completion, end of
sequence together), and `--num_rows` keeps the first so many of those to train on. Rows without an answer are dropped.

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
