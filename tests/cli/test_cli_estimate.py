"""`dco-trl estimate` as a user types it, on a tiny checkpoint on disk, up to training on its output."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from tiny_models import make_model, make_tokenizer, save_checkpoint

from dco_trl import CoTDCOConfig, CoTDCOTrainer
from dco_trl.cli import main
from dco_trl.sampling import TransformersSampler

# About half of the samples of a tiny model of characters end at one of these; the others are cut off.
STOPS = list("02468aeiou ")
GRADERS = '''
import re

def even(completions, **kwargs):
    """Right: an even number of characters. A text with one of x, y, z cannot be judged."""
    return [None if re.search("[xyz]", text) else float(len(text) % 2 == 0) for text in completions]

def even_message(completions, **kwargs):
    return even([message[0]["content"] for message in completions])

def rows_with_3(completions, answer, **kwargs):
    return [1.0 if reference == "3" else None for reference in answer]

def nobody(completions, **kwargs):
    return [None] * len(completions)
'''
ROWS = [
    {"prompt": f"{a}+{b}=", "completion": f" {b}+{a} {a + b}", "answer": a + b, "level": [a, b], "note": None}
    for a in range(1, 4)
    for b in range(1, 3)
]
# Another rationale of the first problem.
ROWS.insert(3, {**ROWS[0], "completion": " 2", "note": "short, 2 für 1+1"})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, graders and data sets, to work in."""
    folder = tmp_path_factory.mktemp("place")
    save_checkpoint(folder / "MODEL", initializer_range=0.2)
    (folder / "estimate_graders.py").write_text(GRADERS)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "folder.jsonl").mkdir()
    return folder


def estimate(*arguments, output, num_samples=12, dataset="train.jsonl", grader="estimate_graders:even"):
    return main(
        ["estimate", "--model", "MODEL", "--dataset", str(dataset), "--output", str(output), "--grader", grader]
        + ["--num-samples", str(num_samples), "--max-tokens", "5", "--stop", *STOPS, "--num-workers", "1", *arguments]
    )


def read(output):
    return [json.loads(line) for line in Path(output).read_text().splitlines()]


def counts(output):
    return [(row["num_sampled"], row["num_correct"]) for row in read(output)]


def samples_in(run):
    """The samples of a run folder, read without this package."""
    parts = sorted(Path(run, "samples").glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part, partitioning=None).to_pylist()]


def test_counts_beside_every_column(here, tmp_path, capsys):
    output = tmp_path / "new" / "counted.jsonl"
    assert estimate(output=output) == 0
    rows = read(output)
    assert [{k: v for k, v in row.items() if not k.startswith("num_")} for row in rows] == ROWS

    # Count independently: a sample that was cut off is wrong in any case; one that was not judged does not count.
    drawn, sampled, correct = samples_in(tmp_path / "new/counted.samples"), Counter(), Counter()
    truncated = accepted = ungraded = 0
    for sample in drawn:
        is_cut, is_unjudged = sample["finish_reason"] == "length", bool(set(sample["text"]) & set("xyz"))
        truncated += is_cut
        accepted += is_cut and not is_unjudged and len(sample["text"]) % 2 == 0
        ungraded += is_unjudged and not is_cut
        sampled[sample["problem_id"]] += is_cut or not is_unjudged
        correct[sample["problem_id"]] += not is_cut and not is_unjudged and len(sample["text"]) % 2 == 0
    # Six problems in seven rows: row 3 repeats the prompt of row 0 and has its counts.
    assert Counter(sample["problem_id"] for sample in drawn) == dict.fromkeys("012456", 12)
    assert counts(output) == [(sampled[i], correct[i]) for i in "0120456"]
    # The case is not trivial: there are samples of each kind.
    assert 0 < sum(correct.values()) < sum(sampled.values()) < len(drawn) and truncated and ungraded
    assert accepted
    assert any(s["finish_reason"] == "length" and set(s["text"]) & set("xyz") for s in drawn)

    out = capsys.readouterr().out
    rates = [correct[i] / sampled[i] for i in "012456"]
    unsolved = rates.count(0)
    for line in (
        f"{output}: 7 rows with num_sampled and num_correct",
        "problems           6\n",
        "samples            72\n",
        f"mean success rate  {sum(rates) / 6:.2%}\n",
        f"never solved       {unsolved} problems ({unsolved / 6:.1%})\n",
        f"cut off            {truncated} samples ({truncated / 72:.1%}), counted as wrong, also {accepted} that "
        "the grader accepted\n",
        f"not graded         {ungraded} samples ({ungraded / 72:.1%}), not counted\n",
    ):
        assert line in out
    assert "left out" not in out and "replaced" not in out


@pytest.mark.slow
def test_training_on_the_file(here, tmp_path, capsys):
    output = tmp_path / "counted.jsonl"
    assert estimate(output=output) == 0
    # The lines that the command prints load it.
    printed = capsys.readouterr().out.split("Train on it:\n")[1]
    load, build = [line.strip() for line in printed.splitlines() if "rows" in line]
    scope = {"load_dataset": load_dataset}
    exec(load, scope)
    assert build == 'CoTDCOTrainer("MODEL", args=args, train_dataset=rows).train()'
    args = CoTDCOConfig(
        output_dir=tempfile.mkdtemp(),
        num_attempts=16,
        sampler="none",
        estimator="plugin",
        ce_warmup_steps=0,
        max_steps=1,
        per_device_train_batch_size=len(ROWS),
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = CoTDCOTrainer(make_model(), args=args, train_dataset=scope["rows"], processing_class=make_tokenizer())
    trainer.train()
    logged = trainer.state.log_history[0]
    rates = [correct / sampled for sampled, correct in counts(output)]
    assert len(set(rates)) > 2
    weights = [16 * p * (1 - p) ** 15 / (1 - (1 - p) ** 16) if p else 1.0 for p in rates]
    assert logged["coverage_weight"] == pytest.approx(sum(weights) / 7, abs=1e-4)
    assert logged["grad_norm"] > 0


@pytest.mark.slow
def test_a_stopped_run_goes_on(here, tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    chunks = ("--chunk-size", "30")
    assert estimate(*chunks, output=whole) == 0

    real, calls = TransformersSampler.sample, []

    def sample(self, requests, params):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(requests)
        return real(self, requests, params)

    with monkeypatch.context() as patch:
        patch.setattr(TransformersSampler, "sample", sample)
        assert estimate(*chunks, output=stopped) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert not stopped.exists()
    (first,) = (tmp_path / "stopped.samples/samples").glob("part-000000-*.parquet")
    before = first.read_bytes()

    assert estimate(*chunks, output=stopped) == 0
    assert "30 samples are there, 42 are to be drawn" in capsys.readouterr().err
    assert first.read_bytes() == before
    assert stopped.read_bytes() == whole.read_bytes()
    # Nothing is left to draw, even for the other format; a larger number adds samples.
    assert estimate(output=tmp_path / "stopped.parquet") == 0
    assert "nothing to draw" in capsys.readouterr().out
    assert [row["num_sampled"] for row in pq.read_table(tmp_path / "stopped.parquet").to_pylist()] == [
        sampled for sampled, _ in counts(whole)
    ]
    assert estimate(output=stopped, num_samples=14) == 0
    assert "12 samples drawn" in capsys.readouterr().out and sum(n for n, _ in counts(stopped)) > 72


@pytest.mark.slow
def test_parquet_in_and_out(here, tmp_path, capsys):
    source, output = tmp_path / "train.parquet", tmp_path / "out.parquet"
    rows = [{**row, "num_sampled": 3, "num_correct": 1} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), source)
    assert estimate("--run", str(tmp_path / "elsewhere"), output=output, dataset=source) == 0
    assert (tmp_path / "elsewhere/manifest.json").exists() and not (tmp_path / "out.samples").exists()
    table = pq.read_table(output)
    assert table.column_names == [*ROWS[0], "num_sampled", "num_correct"]
    assert pa.types.is_int64(table.schema.field("num_sampled").type)
    assert table.select(list(ROWS[0])).to_pylist() == ROWS
    out = capsys.readouterr().out
    assert "replaced           num_sampled and num_correct of the data set given" in out
    assert 'load_dataset("parquet", data_files=' in out
    # Rows with different columns become one table.
    uneven = tmp_path / "uneven.jsonl"
    uneven.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "answer": "3", "level": 1}\n')
    assert estimate(output=tmp_path / "uneven.parquet", dataset=uneven) == 0
    assert pq.read_table(tmp_path / "uneven.parquet")["level"].to_pylist() == [None, 1]
    assert "2 rows have no column `completion`" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_that_nobody_could_judge_are_left_out(here, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    # Every sample ends before the limit, so none is wrong for its length.
    stop_at_once = ("--max-tokens", "200", "--num-problems", "5")
    assert estimate(*stop_at_once, output=output, grader="estimate_graders:rows_with_3", num_samples=3) == 0
    kept = [row for row in ROWS[:5] if row["answer"] == 3]
    assert [row["prompt"] for row in read(output)] == [row["prompt"] for row in kept] and len(kept) == 2
    assert counts(output) == [(3, 3), (3, 3)]
    out = capsys.readouterr().out
    assert "left out           3 rows: none of their samples could be graded" in out
    assert "mean success rate  100.00%" in out and "never solved       0 problems" in out

    nothing = tmp_path / "nothing.jsonl"
    assert estimate(*stop_at_once, output=nothing, grader="estimate_graders:nobody", num_samples=1) == 2
    err = capsys.readouterr().err
    assert "grader 'estimate_graders:nobody' could not judge a single sample" in err and "was not written" in err
    assert not nothing.exists()


def test_the_prompt_is_written_as_it_was_sampled(here, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    assert estimate("--prompt-template", "q {prompt}", "--temperature", "0.9", output=output, num_samples=1) == 0
    assert [row["prompt"] for row in read(output)] == ["q " + row["prompt"] for row in ROWS]
    assert [row["completion"] for row in read(output)] == [row["completion"] for row in ROWS]
    out = capsys.readouterr().out
    assert "prompt             as sampled" in out
    assert "sampled with       temperature 0.9: not the probabilities that training changes" in out


def test_chat_makes_both_conversational(here, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    save_checkpoint(tmp_path / "CHAT", initializer_range=0.2)
    tokenizer.save_pretrained(tmp_path / "CHAT")
    output = tmp_path / "out.jsonl"
    chat = ("--chat", "--model", str(tmp_path / "CHAT"))
    assert estimate(*chat, output=output, num_samples=2, grader="estimate_graders:even_message") == 0
    row = read(output)[0]
    assert row["prompt"] == [{"role": "user", "content": ROWS[0]["prompt"]}]
    assert row["completion"] == [{"role": "assistant", "content": ROWS[0]["completion"]}]


@pytest.mark.slow
def test_an_adapter_is_sampled_and_named(here, tmp_path, capsys):
    adapted = get_peft_model(make_model(), LoraConfig(init_lora_weights=False, target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "ADAPTER")
    adapter = str(tmp_path / "ADAPTER")
    assert estimate("--adapter", adapter, output=tmp_path / "adapted.jsonl") == 0
    assert f"The counts are those of the model with the adapter {adapter}" in capsys.readouterr().out
    assert estimate(output=tmp_path / "plain.jsonl") == 0
    assert "with the adapter" not in capsys.readouterr().out
    assert samples_in(tmp_path / "adapted.samples") != samples_in(tmp_path / "plain.samples")
    # The samples of the two are never mixed.
    assert estimate("--run", str(tmp_path / "plain.samples"), "--adapter", adapter, output=tmp_path / "x.jsonl") == 2
    assert "samples of the two must not be mixed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--output", "out.csv"], "--output 'out.csv': cannot write a file of type '.csv'; use one of .jsonl"),
        (["--output", "out"], "cannot write a file of type ''"),
        (["--output", "folder.jsonl"], "--output 'folder.jsonl' is a folder; name a file"),
        (["--output", "train.jsonl"], "--output 'train.jsonl' is the data set itself, which is not overwritten"),
        (["--num-problems", "99"], "--num-problems is 99, and train.jsonl has 7 rows. Ask for fewer"),
        (["--answer-column", "target"], "--answer-column names 'target', which is not a column of train.jsonl"),
        (["--grader", "maths"], "grader 'maths' is not known"),
        (["--run", "MODEL"], "holds other files"),
    ],
)
def test_mistakes_are_one_message_and_status_2(here, tmp_path, capsys, arguments, told):
    before = sorted(here.rglob("*"))
    assert estimate(*arguments, output=tmp_path / "out.jsonl") == 2
    err = capsys.readouterr().err
    assert "dco-trl estimate: " in err and told in err and "Traceback" not in err
    assert sorted(here.rglob("*")) == before and not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_what_a_format_cannot_hold(here, tmp_path, capsys):
    # The samples are kept, and the other format is written from them.
    odd = tmp_path / "odd.parquet"
    pq.write_table(pa.Table.from_pylist([{**ROWS[1], "extra": float("nan")}]), odd)
    assert estimate(output=tmp_path / "odd-out.jsonl", dataset=odd, num_samples=4) == 2
    assert "cannot be written as JSON (Out of range float" in capsys.readouterr().err
    assert estimate(output=tmp_path / "odd-out.parquet", dataset=odd, num_samples=4) == 0
    assert "nothing to draw" in capsys.readouterr().out

    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps({**ROWS[i], "extra": x}) + "\n" for i, x in ((0, 1), (1, "one"))))
    assert estimate(output=tmp_path / "mixed-out.parquet", dataset=mixed, num_samples=4) == 2
    assert "column 'extra' cannot be written as Parquet" in capsys.readouterr().err
    assert estimate(output=tmp_path / "mixed-out.jsonl", dataset=mixed, num_samples=4) == 0


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", "--help"])
    assert stopped.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The .jsonl or .parquet file to write." in out and "(default: train)" in out
    assert main([]) == 0 and "estimate" in capsys.readouterr().out
