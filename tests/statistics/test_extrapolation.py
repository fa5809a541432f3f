"""Extrapolation from a Beta fit: the fit against a grid, the guess against known truth, and the check against both."""

import mpmath
import numpy as np
import pytest
from scipy import stats
from scipy.special import betaln

from dco_trl.statistics import fit_beta_binomial
from dco_trl.statistics.extrapolation import (
    ExtrapolatedPassAtK,
    check_extrapolation,
    extrapolate_pass_at_k,
)
from dco_trl.statistics.pass_at_k import pass_at_k


def beta_pass_at_k(a, b, k):
    return -np.expm1(betaln(a, b + np.asarray(k)) - betaln(a, b))


def test_fit_is_the_maximum_of_scipys_beta_binomial():
    rng = np.random.default_rng(0)
    counts = rng.binomial(32, rng.beta(0.4, 1.5, size=150))
    alpha, beta = fit_beta_binomial(32, counts)
    best = stats.betabinom.logpmf(counts, 32, alpha, beta).sum()
    for factor_a in (0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0):
        for factor_b in (0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0):
            assert stats.betabinom.logpmf(counts, 32, alpha * factor_a, beta * factor_b).sum() <= best + 1e-6


def test_fit_recovers_the_parameters():
    rng = np.random.default_rng(1)
    alpha, beta = fit_beta_binomial(64, rng.binomial(64, rng.beta(0.3, 2.0, size=20_000)))
    assert alpha == pytest.approx(0.3, rel=0.05) and beta == pytest.approx(2.0, rel=0.1)


def test_up_to_the_samples_it_is_the_unbiased_estimate_and_goes_on_from_there():
    counts = np.random.default_rng(2).binomial(64, 0.02, size=100)
    guess = extrapolate_pass_at_k(64, counts, [1, 63, 64, 65, 4096])
    np.testing.assert_allclose(
        guess.estimate[:3], pass_at_k(64, counts[:, None], [1, 63, 64]).mean(axis=0), rtol=1e-14
    )
    assert guess.extrapolated.tolist() == [False, False, False, True, True]
    assert 0 <= guess.estimate[3] - guess.estimate[2] < 0.02
    assert (np.diff(guess.estimate) > 0).all()
    assert (guess.low <= guess.estimate).all() and (guess.estimate <= guess.high).all()


def test_unsolved_problems_follow_the_formula():
    counts = np.array([0, 0, 1, 5, 8, 0])
    guess = extrapolate_pass_at_k(8, counts, [64, 10**9])
    with mpmath.workdps(40):
        for k, value in zip([64, 10**9], guess.estimate, strict=True):
            left = mpmath.beta(guess.alpha, guess.beta + k) / mpmath.beta(guess.alpha, guess.beta + 8)
            assert value == pytest.approx(float(0.5 + 0.5 * (1 - left)), abs=1e-9)


def test_problems_may_differ_in_samples():
    guess = extrapolate_pass_at_k([8, 16], [0, 1], [8, 12, 16])
    assert guess.num_samples == 8 and guess.extrapolated.tolist() == [False, True, True]
    assert guess.estimate[0] == pytest.approx((0 + pass_at_k(16, 1, 8)) / 2)


def test_it_says_what_it_is():
    guess = extrapolate_pass_at_k(8, [0, 1, 8, 2, 0, 5, 0, 0], [8, 64])
    assert isinstance(guess, ExtrapolatedPassAtK)
    assert "Extrapolation, not a measurement, beyond k=8" in guess.note and "Beta(" in guess.note
    lines = str(guess).splitlines()
    assert lines[0].startswith("pass@8 = 0.5000") and "extrapolated" not in lines[0]
    assert lines[1].startswith("pass@64 = ") and lines[1].endswith("(extrapolated)")
    assert lines[2] == guess.note


def test_degenerate_data():
    np.testing.assert_array_equal(extrapolate_pass_at_k(8, [8, 8, 8], [8, 64]).estimate, [1.0, 1.0])
    same = extrapolate_pass_at_k(8, [4] * 50, [64])  # no spread at all: the Beta shrinks to a point
    assert same.estimate[0] == 1.0 and same.alpha > 1e3
    apart = extrapolate_pass_at_k(8, [0] * 99 + [8], [64])  # rates of 0 or 1 only: nothing more will be solved
    assert apart.estimate[0] == pytest.approx(0.01, abs=1e-4)
    one = extrapolate_pass_at_k(8, [1], [64])
    assert np.isfinite(one.estimate).all() and np.isfinite(one.low).all() and np.isfinite(one.high).all()


def test_same_seed_same_interval():
    counts = np.random.default_rng(3).binomial(16, 0.1, size=40)
    first, again = (extrapolate_pass_at_k(16, counts, 64, seed=4) for _ in range(2))
    np.testing.assert_array_equal([first.low, first.high], [again.low, again.high])


@pytest.mark.parametrize(("a", "b"), [(0.3, 1.0), (0.2, 3.0), (0.5, 0.5)])
def test_holding_out_half_of_beta_data_shows_a_small_error(a, b):
    rng = np.random.default_rng(5)
    check = check_extrapolation(128, rng.binomial(128, rng.beta(a, b, size=400)))
    assert check.fitted_on == 64 and check.k.tolist() == [128] and check.num_splits == 20
    assert abs(check.error[0]) < 0.015 and check.rms_error[0] < 0.02
    assert check.error[0] == pytest.approx(check.predicted[0] - check.observed[0], abs=1e-12)


def test_the_guess_agrees_with_the_truth_far_beyond_the_samples():
    rng = np.random.default_rng(6)
    counts = rng.binomial(64, rng.beta(0.3, 1.0, size=2000))
    guess = extrapolate_pass_at_k(64, counts, [128, 1024, 16384], num_resamples=100)
    truth = beta_pass_at_k(0.3, 1.0, guess.k)
    assert np.abs(guess.estimate - truth).max() < 0.02
    assert ((guess.low - 0.005 < truth) & (truth < guess.high + 0.005)).all()


def test_the_check_exposes_problems_that_can_never_be_solved():
    rng = np.random.default_rng(7)
    rates = rng.beta(0.5, 1.0, size=400) * (rng.random(400) < 0.6)
    counts = rng.binomial(256, rates)
    near = check_extrapolation(256, counts)
    far = check_extrapolation(256, counts, held_out=15 / 16)
    assert far.fitted_on == 16 and far.k.tolist() == [32, 64, 128, 256]
    # It promises too much, and the more so the further it goes.
    assert near.error[0] > 0.005 and far.error[-1] > 3 * near.error[0] and (np.diff(far.error) > 0).all()


def test_the_check_uses_the_split_of_the_samples():
    # Samples that are all alike: every half says the same, whatever the split.
    check = check_extrapolation(8, [8, 8, 0, 0], num_splits=3)
    assert check.observed[0] == 0.5 and check.predicted[0] == pytest.approx(0.5, abs=1e-3)
    # Different numbers of samples: the fit uses as many of each as the fewest allow.
    assert check_extrapolation([8, 64], [4, 3]).fitted_on == 4
    lines = str(check_extrapolation(64, [0, 1, 5, 20, 64], held_out=0.75)).splitlines()
    assert lines[0] == "Fitted on 16 samples a problem, 20 random splits:"
    assert lines[1].startswith("pass@32 (2 times): predicted 0.") and lines[2].startswith("pass@64 (4 times)")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: extrapolate_pass_at_k(8, [0, 0], 64),
            r"num_correct is 0 for all 2 problems \(16 samples\).*never_solved",
        ),
        (lambda: extrapolate_pass_at_k(8, [], 64), "num_correct is empty"),
        (lambda: extrapolate_pass_at_k(8, [1], 64, confidence=95), "confidence must be between"),
        (lambda: extrapolate_pass_at_k(8, [1], 64, num_resamples=5), "num_resamples must be at least 100"),
        (lambda: extrapolate_pass_at_k(8, [9], 64, problem_ids=["x"]), "num_correct=9 is more than.*problem 'x'"),
        (lambda: check_extrapolation(8, [1, 2], held_out=1.0), "held_out must be a share between 0 and 1, got 1.0"),
        (lambda: check_extrapolation(3, [1, 2]), "leaves 2 of 3 samples for the fit and 1 beside it"),
        (lambda: check_extrapolation(8, [0, 0]), "num_correct is 0 for all 2 problems"),
        (lambda: check_extrapolation(1000, [1], held_out=0.998), "None of the 2 samples a problem kept for the fit"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
