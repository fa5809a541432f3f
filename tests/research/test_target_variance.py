"""The noise of several targets: the estimator against a known covariance, and the command on two problems."""

import sys

import numpy as np
import pytest

from research.chain_of_thought import target_variance


def test_noise_is_the_trace_of_the_covariance_over_the_squared_mean():
    mean, deviation = np.array([3.0, 4.0]), np.array([0.5, 2.0])
    gradients = mean + deviation * np.random.default_rng(0).normal(size=(200_000, 2))
    assert target_variance.noise(gradients) == pytest.approx((deviation**2).sum() / (mean**2).sum(), rel=0.02)


@pytest.mark.slow
def test_command_runs_and_says_when_nothing_was_sampled_right(tmp_path, monkeypatch):
    monkeypatch.setattr(target_variance, "be_quiet", lambda: None)  # it would silence the tests that follow
    output = tmp_path / "out.json"
    words = "--epochs 1 --prompts 2 --rationales 4 --repeats 2 --num-attempts 4"
    monkeypatch.setattr(sys, "argv", ["target_variance.py", "--output", str(output), *words.split()])
    with pytest.raises(SystemExit, match="no sampled rationale was correct.*raise --epochs"):
        target_variance.main()
