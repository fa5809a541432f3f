"""Samples along a schedule against what exact probabilities predict: a case that can be counted by hand."""

import json

import numpy as np

from dco_trl.runs import Problem, RunStore
from dco_trl.runs.arm import Arm
from dco_trl.runs.arms import write_arms
from dco_trl.runs.schedule_file import write_schedule
from dco_trl.statistics import plan_attempts
from research.schedules import sampled as script


def test_what_was_sampled_stands_beside_what_was_expected(tmp_path, capsys):
    arms, rates = [Arm("m", "one"), Arm("m", "two")], np.array([[0.5, 0.0], [0.0, 0.25]])
    with np.errstate(divide="ignore"):
        log_p = np.log(rates)
    write_arms(tmp_path / "exact.parquet", arms, ["a", "b"], log_p)
    schedule = write_schedule(tmp_path / "schedule.yaml", plan_attempts(4, log_p=log_p), arms)
    (tmp_path / "test.jsonl").write_text(
        "".join(json.dumps({"id": i, "prompt": "?", "completion": " 1"}) + "\n" for i in "ab")
    )
    name_of = [schedule.arms[i].name for i in np.repeat(schedule.schedule.arm, schedule.schedule.attempts)]
    assert name_of[0] == arms[0].name and name_of.count(arms[0].name) == 2
    with RunStore.writing(
        tmp_path / "run", {"model": "m", "schedule": {}}, [Problem("a", "?", "1"), Problem("b", "?", "1")]
    ) as store:  # the first problem is solved by the first attempt, the other never: "1" is not " 1"
        store.write_samples(
            (problem, i, " 1" if (problem, i) == ("a", 0) else "1", 1, "stop", name_of[i])
            for problem in "ab"
            for i in range(4)
        )
    files = {"run": "run", "schedule": "schedule.yaml", "exact": "exact.parquet", "dataset": "test.jsonl"}
    assert script.main([text for key, name in files.items() for text in (f"--{key}", str(tmp_path / name))]) == 0
    printed = capsys.readouterr().out
    assert f"| {arms[0].name} | 4 | 1 | 1.0 | +0.0 |" in printed  # 2 attempts x .5, of variance 2 x .25
    assert f"| {arms[1].name} | 4 | 0 | 0.5 | -0.8 |" in printed  # 2 x .25 of variance 2 x .1875: -.5 / .61
    assert "| all | 8 | 1 | 1.5 | -0.5 |" in printed  # -.5 / sqrt(.875)
    assert "| 1 | 50.0 | 25.0 | 25.0 |" in printed  # of two problems one at .5: sqrt(.25) / 2
    assert "| 4 | 50.0 | 59.4 |" in printed  # 1 - .5^2 and 1 - .75^2
