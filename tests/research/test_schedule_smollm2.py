"""Schedules over the epochs of SmolLM2: planned on one half of the problems, measured on the other."""

import numpy as np
import pytest

from dco_trl.statistics import cross_fit_schedule
from research.schedules import smollm2 as script


def rates(seed, num_arms, num_problems=60):
    return np.log(np.random.default_rng(seed).beta(0.3, 6, size=(num_arms, num_problems)))


def test_cross_fitting_is_that_of_the_package():
    log_p = rates(0, 5)
    expected = cross_fit_schedule(script.KS, log_p=log_p, max_arms=script.MAX_ARMS)
    schedule = script.cross_fitted(log_p, script.along_schedule)
    assert schedule.mean(0) == pytest.approx(expected.curve.estimate)
    gain = schedule - script.cross_fitted(log_p, script.of_best_epoch)
    assert gain.mean(0) == pytest.approx(expected.best_arm.difference)


def test_families_that_are_there_are_compared(capsys):
    log_p = {script.CE: [rates(0, 3), rates(1, 3)], script.DCO_256: [rates(2, 3), rates(3, 3)]}
    summary = script.summarise(log_p)
    script.print_tables(summary)
    assert set(summary["coverage"]) == {
        f"{way}, {family}" for way in script.WAYS for family in ("cross-entropy", "cross-entropy and N = 256")
    }
    assert [(row["of"], row["from"]) for row in summary["differences"]] == [
        ("schedule, cross-entropy", "best epoch, cross-entropy"),
        ("schedule, cross-entropy and N = 256", "best epoch, cross-entropy and N = 256"),
    ]
    of_seeds = summary["by_seed"]["cross-entropy"]["schedule"]
    assert np.mean(of_seeds, axis=0) == pytest.approx(summary["coverage"]["schedule, cross-entropy"], abs=2e-5)
    assert "| schedule, cross-entropy | best epoch, cross-entropy | " in capsys.readouterr().out
