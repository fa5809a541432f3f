"""`--shard` as a user types it."""

import json

import pytest
from tiny_models import save_checkpoint

from dco_trl.cli import main
from dco_trl.runs import RunStore, load_results
from dco_trl.runs.locks import locked
from dco_trl.runs.shards import Shard

DATA = ["--model", "MODEL", "--dataset", "problems.jsonl", "--max-tokens", "3"]


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save_checkpoint("MODEL", initializer_range=0.2)
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(3)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_shards_are_sampled_and_graded_apart_and_reported_together(here, capsys):
    for i in range(2):
        assert main(["sample", *DATA, "--num-samples", "64", "--output", "run", "--shard", f"{i}/2"]) == 0
        out, err = capsys.readouterr()
        assert "96 samples drawn in" in out and f"96 in shard {i}/2" in out
        assert f"3 problems × 64 samples, of these shard {i}/2" in err
    for i in range(2):
        assert main(["grade", "run", "--grader", "exact", "--shard", f"{i}/2"]) == 0
        assert "96 samples graded by exact (96 of them now)" in capsys.readouterr().out
    assert main(["report", "run"]) == 0
    assert [problem.num_samples for problem in load_results("run").problems] == [64] * 3


def test_eval_of_a_shard_ends_before_the_report(here, capsys):
    for i in range(2):
        command = ["eval", *DATA, "--num-samples", "8", "--output", "run", "--grader", "exact", "--shard", f"{i}/2"]
        assert main(command) == 0
        assert capsys.readouterr().out.endswith(f"shard {i}/2 is done; when all are: dco-trl report run\n")
    assert not (here / "run/report").exists()
    assert main(["report", "run"]) == 0
    assert sum(problem.num_samples for problem in load_results("run").problems) == 24


def test_solve_writes_the_answers_of_its_shard(here, capsys):
    command = ["solve", *DATA, "--num-attempts", "2", "--output", "run", "--grader", "exact", "--shard"]
    assert main([*command, "1/2"]) == 0
    assert "written: run/answers-1of2.jsonl" in capsys.readouterr().out
    assert len((here / "run/answers-1of2.jsonl").read_text().splitlines()) == 1
    assert main([*command, "3/4"]) == 2
    assert "--shard '3/4' has none of the 3 problems" in capsys.readouterr().err


def test_mistakes_are_one_message(here, capsys):
    for command in (
        ["sample", *DATA, "--num-samples", "8", "--output", "run"],
        ["eval", *DATA, "--num-samples", "8", "--output", "run"],
        ["solve", *DATA, "--num-attempts", "8", "--output", "run"],
        ["grade", "run"],
    ):
        assert main([*command, "--shard", "2/2"]) == 2
        error = capsys.readouterr().err
        assert f"dco-trl {command[0]}: --shard '2/2' must be i/n, with i from 0 to n-1" in error, error
    assert main(["sample", *DATA, "--num-samples", "8", "--output", "run", "--shard", "0/2"]) == 0
    with locked(here / "run", Shard(0, 2)):
        assert main(["sample", *DATA, "--num-samples", "8", "--output", "run", "--shard", "0/2"]) == 2
        assert "shard 0/2 of run is in use by this process" in capsys.readouterr().err
    assert len(RunStore("run").present()) == 2
