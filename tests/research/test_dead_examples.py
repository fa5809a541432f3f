"""Leaving out learnt examples: who is due, which rows a batch gets, what the curves say, and the command itself."""

import json
import math
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

# The script is imported by name, as it is when it is run.
sys.path.insert(0, str(Path(__file__).parents[2] / "research"))

import dead_examples
import dead_figure
from dead_examples import CURVE_K, EVAL_ROW, DropDead, Memory, Run, Stream

from dco_trl.demo import task


def memory_with_dead(num_examples, dead, recheck_steps=10, dead_below=0.1):
    memory = Memory(num_examples, dead_below, recheck_steps)
    rows = np.arange(num_examples)
    memory.remember(rows, np.where(np.isin(rows, dead), 0.05, 0.9))
    return memory


def test_dead_examples_are_due_again_after_some_steps():
    memory = memory_with_dead(4, dead=[1, 2], recheck_steps=3)
    for due in ([True, False, False, True], [True, False, False, True], [True, True, True, True]):
        memory.remember(np.array([0]), np.array([0.5]))
        assert memory.is_due(np.arange(4)).tolist() == due
    memory.remember(np.array([1, 2]), np.array([0.2, 0.01]))  # looked at: one came back to life
    assert memory.is_due(np.arange(4)).tolist() == [True, True, False, True]


def test_a_weight_at_the_threshold_is_alive_and_threshold_0_leaves_nothing_out():
    memory = Memory(2, dead_below=0.1, recheck_steps=5)
    memory.remember(np.array([0, 1]), np.array([0.1, 0.0999]))
    assert memory.is_due(np.arange(2)).tolist() == [True, False]
    memory = Memory(2, dead_below=0.0, recheck_steps=5)
    memory.remember(np.array([0, 1]), np.array([0.0, 1.0]))
    assert memory.is_due(np.arange(2)).all()


def test_an_epoch_is_each_example_once_while_all_are_alive():
    stream = Stream(Memory(10, 0.1, 5), seed=0, refill=True)
    epochs = [list(stream), list(stream)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert list(Stream(Memory(10, 0.1, 5), seed=0, refill=False)) == epochs[0]


def test_refilling_passes_over_the_dead_and_keeps_the_epochs_length():
    stream = Stream(memory_with_dead(10, dead=[0, 3, 4, 7]), seed=0, refill=True)
    epoch = list(stream)
    assert len(stream) == len(epoch) == 10
    assert sorted(epoch[:6]) == [1, 2, 5, 6, 8, 9]  # a pass; the next one begins
    assert set(epoch[6:]) < {1, 2, 5, 6, 8, 9}
    assert sorted([*epoch[6:], *islice(stream, 2)]) == [1, 2, 5, 6, 8, 9]  # it goes on where it was
    kept = Stream(memory_with_dead(10, dead=[0, 3, 4, 7]), seed=0, refill=False)
    assert sorted(kept) == list(range(10))


def test_a_pass_with_nobody_due_is_served_whole():
    assert sorted(Stream(memory_with_dead(5, dead=range(5)), seed=0, refill=True)) == list(range(5))


def test_dropping_keeps_the_others_or_one():
    rows = [{EVAL_ROW: row} for row in (0, 1, 2)]
    assert DropDead(list, memory_with_dead(3, dead=[0, 2]))(rows) == [{EVAL_ROW: 1}]
    assert DropDead(list, memory_with_dead(3, dead=[0, 1, 2]))(rows) == [{EVAL_ROW: 0}]


def record(coverage, k=256, spent=10, **others):
    table = np.zeros((len(coverage), len(CURVE_K)))
    table[:, CURVE_K.index(k)] = coverage
    steps = (spent * np.arange(1, len(coverage) + 1)).tolist()
    run = {"num_attempts": k, "method": "all", "dead_below": 0.0, "recheck_epochs": 1, "seed": 0}
    units = {unit: steps for unit in ("step", "examples", "tokens", "seconds")}
    return run | units | {"num_epochs": len(coverage), "coverage": table.tolist(), "dead": coverage} | others


@pytest.mark.parametrize(
    ("level", "spent"), [(0.05, 5.0), (0.1, 10.0), (0.2, 15.0), (0.3, 20.0), (0.35, 30.0), (0.0, 0.0), (0.9, 40.0)]
)
def test_time_to_a_level_by_hand(level, spent):
    # Straight from 0 at 0 to .1 at 10 and .3 at 20; the dip does not count; .4 from 30 on; never .9: all of it.
    curve = record([0.1, 0.3, 0.2, 0.4])
    if level == 0.35:
        spent = 30 + 10 * (0.35 - 0.2) / 0.2
    assert dead_examples.spent_until(curve, 256, level, "step") == pytest.approx(spent)


def test_the_level_is_of_the_epochs_with_a_constant_rate():
    coverage = [*np.linspace(0.1, 0.6, 17), 0.9, 0.9, 0.9]  # 20 epochs: the rate falls from the 18th on
    assert dead_examples.level_of(record(coverage), 256) == pytest.approx(0.95 * 0.6)
    assert dead_examples.level_of(record([0.2]), 256) == pytest.approx(0.95 * 0.2)


def test_the_better_setting_is_chosen_and_the_first_of_equals():
    low, high = dead_examples.CANDIDATES

    def tried(setting, *ends):
        return [
            record([0.9, end], dead_below=setting[0], recheck_epochs=setting[1], seed=seed)
            for seed, end in enumerate(ends)
        ]

    other = [record([1.0], k=4096, dead_below=high[0], recheck_epochs=high[1])]
    assert dead_examples.best_setting([*tried(low, 0.3, 0.5), *tried(high, 0.1, 0.8), *other], 256) == high
    assert dead_examples.best_setting([*tried(low, 0.3, 0.5), *tried(high, 0.5, 0.3), *other], 256) == low


def test_a_summary_by_hand():
    runs = []
    for seed, factor in enumerate((1.0, 0.9)):
        slow, fast = np.array([0.2, 0.4, 0.4, 0.4]) * factor, np.array([0.4, 0.4, 0.5, 0.6]) * factor
        runs += [record(slow.tolist(), seed=seed), record(fast.tolist(), seed=seed, method="refill")]
        runs += [record(slow.tolist(), seed=seed, method="drop", spent=5)]
    summary = dead_examples.summarise(runs, 256)
    # The level is .38 and .342: at 19 for "all" and 9.5 for refilling; a step of dropping costs half.
    assert summary["refill"]["sooner"]["tokens"] == {"mean": 2.0, "low": 2.0, "high": 2.0}
    assert summary["drop"]["sooner"]["tokens"]["mean"] == 2.0
    assert summary["refill"]["ahead"]["256"]["mean"] == pytest.approx(0.19)
    assert summary["drop"]["ahead"]["256"]["mean"] == 0.0
    assert [summary[method]["not_reached"] for method in dead_examples.METHODS] == [0, 0, 0]


def test_the_picture_has_a_row_for_each_n_and_a_line_for_each_run():
    runs = [record([0.1, 0.2], method=method, seed=seed) for method in dead_examples.METHODS for seed in range(2)]
    figure = dead_figure.plot_dead({"summary": {"256": {}}, "runs": runs, "k": CURVE_K})
    left, right = figure.axes
    assert len(left.lines) == len(right.lines) == 3 * (2 + 1)
    assert left.lines[0].get_xydata().tolist() == [[0.01, 0.1], [0.02, 0.2]]


def test_every_seed_has_the_three_runs_and_none_is_always_first():
    orders = [[run.method for run in dead_examples.reported(256, (0.1, 3), seed)] for seed in range(3)]
    assert all(sorted(order) == sorted(dead_examples.METHODS) for order in orders)
    assert len({order[0] for order in orders}) == 3


@pytest.fixture
def small(monkeypatch):
    whole = task.make_problems

    def few(seed):
        return tuple(rows.select(range(count)) for rows, count in zip(whole(seed), (150, 20), strict=True))

    monkeypatch.setattr(dead_examples.task, "make_problems", few)
    monkeypatch.setattr(dead_examples, "be_quiet", lambda: None)  # it would silence the tests that follow


@pytest.mark.filterwarnings("ignore")
def test_trainings_are_alike_until_something_is_left_out(small):
    everything = dead_examples.train(Run(256, "all"), 0, 2)
    for method in ("refill", "drop"):
        same = dead_examples.train(Run(256, method, dead_below=0.0, recheck_epochs=1), 0, 2)
        assert same["coverage"] == everything["coverage"]
    # After a visit no weight is 1, so all are dead once seen: the second epoch is a batch of one example a step.
    dropped = dead_examples.train(Run(256, "drop", dead_below=1.0, recheck_epochs=100), 0, 2)
    assert (everything["step"], everything["examples"]) == ([3, 6], [150, 300])
    assert (dropped["step"], dropped["examples"]) == ([3, 6], [150, 153])
    assert dropped["tokens"][0] == everything["tokens"][0] > dropped["tokens"][1] - dropped["tokens"][0] > 0
    assert everything["dead"] == [0.0, 0.0] and all(math.isfinite(value) for value in everything["seconds"])


def test_finished_jobs_are_read_and_others_refused(tmp_path):
    job = ([Run(256, "refill", 0.1, 3)], 100)
    path = tmp_path / f"{dead_examples.job_name(*job)}.json"
    found = record([0.1], method="refill", dead_below=0.1, recheck_epochs=3, seed=100)
    path.write_text(json.dumps([found]))
    assert dead_examples.run_all([job], 1, 1, tmp_path) == [found]
    with pytest.raises(ValueError, match="holds runs of other settings or of another length: give another --work_dir"):
        dead_examples.run_all([job], 2, 1, tmp_path)


def test_workers_are_counted_from_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        dead_examples.main(["--work_dir", str(tmp_path), "--output", str(tmp_path / "o.json"), "--workers", "0"])
    assert "--workers: got 0; at least 1 is needed" in capsys.readouterr().err
