"""Schedules over kept epochs: the command on made-up runs."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from dco_trl.coverage_numpy import coverage
from research.baselines import run as baselines
from research.baselines import tasks, training
from research.schedules import run as schedules

FAMILIES = ["cross-entropy and DCO", "cross-entropy", "cross-entropy and averages of its weights"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of two epochs; the second of DCO with N = 256 finds what no other does."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    for seed in (0, 1):
        for method, setting in schedules.CE + schedules.DCO:
            log_p = rng.uniform(-12, -6, (2, len(training.TEMPERATURES), 20)).astype(np.float32)
            if setting.get("num_attempts") == 256:
                log_p[1] += 5
            averages = log_p[:1].repeat(3, axis=0) if not setting else np.empty((0, 0, 0), np.float32)
            path = baselines.path_of(folder, (method, setting, seed))
            about = {"task": tasks.Multiplication.description, "num_epochs": 2, "num_validation": 10}
            path.write_text(json.dumps({"method": method, "setting": setting, "seed": seed, **about}))
            np.savez(path.with_suffix(".npz"), log_p=log_p, averages=averages)
    return folder


@pytest.mark.slow
def test_the_command_reads_finished_runs(runs, tmp_path, capsys):
    output, figure = tmp_path / "out.json", tmp_path / "out.png"
    command = ["--work_dir", str(runs), "--output", str(output), "--figure", str(figure), "--seeds", "0", "1"]
    command += ["--workers", "0", "--epochs", "2", "--every", "1", "--families", *FAMILIES]
    assert schedules.main(command) == 0
    results = json.loads(output.read_text())
    assert list(results["families"]) == FAMILIES and imread(figure).ndim == imread(tmp_path / "out-lead.png").ndim == 3
    at = results["k"].index(256)
    ours, plain = (results["families"][name] for name in FAMILIES[:2])
    for seed, of_seed in enumerate(results["seeds"]):
        log_p = np.load(baselines.path_of(runs, ("DCO", {"num_attempts": 256}, seed)).with_suffix(".npz"))["log_p"]
        best = coverage(log_p[1, :4, 10:].astype(float), 256).mean(axis=1)
        assert np.abs(best - of_seed["families"][FAMILIES[0]]["best_arm"][at]).min() < 1e-6
    assert ours["schedule"][at]["mean"] > plain["schedule"][at]["mean"] + 0.2
    assert plain["ours_ahead"][at]["mean"] == pytest.approx(
        ours["schedule"][at]["mean"] - plain["schedule"][at]["mean"], abs=2e-5
    )
    assert "cross-entropy and DCO: best arm" in capsys.readouterr().out
    assert schedules.main([*command[:7], "2", *command[9:]]) == 1 and "No seed is complete" in capsys.readouterr().out
