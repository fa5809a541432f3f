"""Runs that are kept, and the measurement of at least m of N at a small size."""

import json
import sys

import pytest
from research_jobs import run_here, square

from dco_trl.demo import task
from research.common import processes
from research.options import num_required


def test_finished_runs_are_kept_and_not_run_again(tmp_path, capfd):
    jobs = [{"number": n} for n in (1, 2, 3)]
    with pytest.raises(RuntimeError, match=r"1 of 3 runs failed, the first: number-2: failed: ValueError: two"):
        processes.run_all(square, jobs, tmp_path, workers=2)
    assert "3 runs, 0 of them finished before" in capfd.readouterr().out
    records = processes.run_all(square, jobs[::2], tmp_path, workers=1)
    assert [(record["number"], record["squared"]) for record in records] == [(1, 1), (3, 9)]
    assert "2 runs, 2 of them finished before" in capfd.readouterr().out


@pytest.mark.slow
def test_num_required(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(num_required, "PAIRS", [(1, 1), (16, 1), (16, 8)])
    monkeypatch.setattr(num_required, "NUM_SAMPLES", 64)
    make_problems = task.make_problems
    monkeypatch.setattr(task, "make_problems", lambda seed: [part.select(range(32)) for part in make_problems(seed)])
    monkeypatch.setattr(num_required, "run_all", run_here)
    output = tmp_path / "results.json"
    arguments = f"x --work_dir {tmp_path} --output {output} --seeds 1 --num_epochs 2"
    monkeypatch.setattr(sys, "argv", arguments.split())
    num_required.main()
    results = json.loads(output.read_text())
    for run in results["runs"]:
        assert [at["epoch"] for at in run["measured"]] == [1, 2]
        found = run["measured"][-1]["test"]
        assert found["pass@16"] >= found["quarter of 16"] >= found["half of 16"]
        assert found["sampled pass@1"] == pytest.approx(found["pass@1"], abs=0.02)
        assert found["majority@1"] == pytest.approx(found["sampled pass@1"], abs=1e-6)
    comparison = results["comparison"]
    assert comparison["chosen"] == [16, 8] and comparison["against"]["DCO"]["pair"] == [16, 1]
    measured = {
        tuple(run[name] for name in ("num_attempts", "num_required")): run["measured"] for run in results["runs"]
    }
    best = {pair: max(run, key=lambda at: at["validation"]["majority@64"])["test"] for pair, run in measured.items()}
    difference = best[16, 8]["pass@256"] - best[1, 1]["pass@256"]
    assert comparison["against"]["cross-entropy"]["pass@256"]["mean"] == pytest.approx(difference, abs=1e-5)
    out = capsys.readouterr().out
    assert "N=16   m=8" in out and "N=16 m=8, the best at the vote on validation, less DCO [16, 1]: majority@64" in out
