"""Extrapolation: the value against its formula and the truth, the interval by its definition and its coverage."""

from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import betaln

from dco_trl.statistics import pass_at_k, pass_at_k_curve
from dco_trl.statistics.extrapolation import ExtrapolatedPassAtK, check_extrapolation, extrapolate_pass_at_k
from dco_trl.statistics.mixture_interval import mixture_interval


def beta_pass_at_k(a, b, k):
    return -np.expm1(betaln(a, b + np.asarray(k)) - betaln(a, b))


def test_up_to_the_samples_it_is_the_unbiased_estimate_and_goes_on_from_there():
    rng = np.random.default_rng(2)
    counts = rng.binomial(64, rng.beta(0.5, 20, size=100))
    guess = extrapolate_pass_at_k(64, counts, [1, 63, 64, 65, 4096])
    np.testing.assert_allclose(
        guess.estimate[:3], pass_at_k(64, counts[:, None], [1, 63, 64]).mean(axis=0), rtol=1e-14
    )
    assert guess.extrapolated.tolist() == [False, False, False, True, True]
    assert 0 <= guess.estimate[3] - guess.estimate[2] < 0.02
    assert (np.diff(guess.estimate) > 0).all()
    assert (guess.low <= guess.estimate).all() and (guess.estimate <= guess.high).all()


def test_unsolved_problems_follow_the_formula():
    counts = np.array([0, 0, 1, 5, 8, 0] * 4)
    guess = extrapolate_pass_at_k(8, counts, [64, 10**9])
    with mpmath.workdps(40):
        for k, value in zip([64, 10**9], guess.estimate, strict=True):
            left = mpmath.beta(guess.alpha, guess.beta + k) / mpmath.beta(guess.alpha, guess.beta + 8)
            assert value == pytest.approx(float(0.5 + 0.5 * (1 - left)), abs=1e-9)


def test_problems_may_differ_in_samples():
    guess = extrapolate_pass_at_k([8, 16] * 12, [0, 1] * 6 + [2, 4] * 6, [8, 12, 16])
    assert guess.num_samples == 8 and guess.extrapolated.tolist() == [False, True, True]
    expected = (0 + pass_at_k(16, 1, 8) + pass_at_k(8, 2, 8) + pass_at_k(16, 4, 8)) / 4
    assert guess.estimate[0] == pytest.approx(expected)


def test_it_says_what_it_is():
    guess = extrapolate_pass_at_k(8, [0, 1, 8, 2, 0, 5, 0, 0] * 4, [8, 64])
    assert isinstance(guess, ExtrapolatedPassAtK)
    assert "Extrapolation, not a measurement, beyond k=8" in guess.note and "Beta(" in guess.note
    lines = str(guess).splitlines()
    assert lines[0].startswith("pass@8 = 0.5000") and "extrapolated" not in lines[0]
    assert lines[1].startswith("pass@64 = ") and lines[1].endswith("(extrapolated)")
    assert lines[2] == guess.note


def test_same_seed_same_interval():
    rng = np.random.default_rng(3)
    counts = rng.binomial(16, rng.beta(0.5, 2, size=40))
    first, again = (extrapolate_pass_at_k(16, counts, [8, 64], seed=4) for _ in range(2))
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
    guess = extrapolate_pass_at_k(64, counts, [128, 1024, 16384])
    truth = beta_pass_at_k(0.3, 1.0, guess.k)
    assert np.abs(guess.estimate - truth).max() < 0.02
    assert ((guess.low <= truth) & (truth <= guess.high)).all()


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
    assert lines[0] == "Fitted on 16 samples per problem, 20 random splits:"
    assert lines[1].startswith("pass@32 (2 times): predicted 0.") and lines[2].startswith("pass@64 (4 times)")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: extrapolate_pass_at_k(8, [0, 0], 64),
            r"num_correct is 0 for all 2 problems \(16 samples\).*never_solved",
        ),
        # What gave "pass@256 = 96 %": 4 right of 320, and a Beta that had run off to equal rates.
        (
            lambda: extrapolate_pass_at_k(16, [1] * 4 + [0] * 16, 256),
            "only 4 of 20 problems have a correct sample: fewer than 10 say nothing .* Draw more samples, or",
        ),
        # What gave pass@65 = 1 [1, 1] where pass@64 is 1 [.86, 1].
        (
            lambda: extrapolate_pass_at_k([64] * 20, [1, 2] * 10, [64, 65]),
            r"fitted to the 20 problems has run off to a bound, Beta\(.*\), where rates are all equal: the counts",
        ),
        (lambda: extrapolate_pass_at_k(8, [0] * 50 + [8] * 50, 64), "run off .* where rates are all near 0 or 1"),
        (lambda: extrapolate_pass_at_k(8, [8] * 12, 64), "run off to a bound"),
        (lambda: extrapolate_pass_at_k(8, [1] * 12, []), "k is empty"),
        (lambda: extrapolate_pass_at_k(8, [], 64), "num_correct is empty: there is no problem to fit"),
        (lambda: extrapolate_pass_at_k(8, [1] * 12, 64, confidence=95), "confidence must be between"),
        (lambda: extrapolate_pass_at_k(8, [1] * 12, 64, num_resamples=5), "num_resamples must be at least 100"),
        (lambda: extrapolate_pass_at_k(8, [9], 64, problem_ids=["x"]), "num_correct=9 is more than.*problem 'x'"),
        (lambda: check_extrapolation(8, [1, 2], held_out=1.0), "held_out must be a share between 0 and 1, got 1.0"),
        (lambda: check_extrapolation(3, [1, 2]), "leaves 2 of 3 samples for the fit and 1 beside it"),
        (lambda: check_extrapolation(8, [0, 0]), "num_correct is 0 for all 2 problems"),
        (lambda: check_extrapolation(1000, [1], held_out=0.998), "None of the 2 samples per problem kept for the fit"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_linear_programme_that_fails_is_named(monkeypatch):
    failed = SimpleNamespace(status=4, message="Numerical difficulties encountered.")
    monkeypatch.setattr("dco_trl.statistics.mixture_interval.linprog", lambda *_, **__: failed)
    with pytest.raises(
        RuntimeError, match="an interval beyond the samples failed: Numerical .*. Ask for k within the"
    ):
        extrapolate_pass_at_k(8, [1, 2, 3, 5] * 5, 64)


# the interval beyond the samples


def test_the_interval_is_that_of_the_profile_likelihood():
    """Against an optimiser that maximises the likelihood with the mean held fixed, on a coarse grid of its own."""
    n, ks = 8, np.array([8, 16])
    counts = np.repeat([0, 1, 2, 5, 8], [20, 6, 4, 6, 4])
    rates = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, 60)])
    kinds, times = np.unique(counts, return_counts=True)
    likelihood = stats.binom.pmf(kinds[:, None], n, rates)

    def most_likely(k, mean):
        """Largest log-likelihood of a mixture with that mean of 1 - (1-p)^k, by its dual: few variables, one root."""
        values = 1 - (1 - rates) ** k

        def negative(w):
            return -times @ np.log(likelihood @ w)

        fit = optimize.minimize(
            negative,
            np.full(rates.size, 1 / rates.size),
            jac=lambda w: -likelihood.T @ (times / (likelihood @ w)),
            bounds=[(1e-12, 1)] * rates.size,
            constraints=[
                {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones_like(w)},
                {"type": "eq", "fun": lambda w: values @ w - mean, "jac": lambda w: values},
            ],
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-9},
        )
        return -fit.fun

    low, high = mixture_interval(np.full(counts.size, n), counts, ks, 0.95)
    for j, k in enumerate(ks):
        best = max(most_likely(k, mean) for mean in np.linspace(low[j] + 0.05, high[j] - 0.05, 9))
        for end in (low[j], high[j]):
            assert best - most_likely(k, end) == pytest.approx(stats.chi2.ppf(0.95, 1) / 2, abs=0.15)


def test_at_the_samples_it_agrees_with_the_bootstrap():
    rng = np.random.default_rng(8)
    counts = rng.binomial(64, rng.beta(0.3, 1, size=200))
    low, high = mixture_interval(np.full(200, 64), counts, np.array([64]), 0.95)
    curve = pass_at_k_curve(64, counts, [64])
    assert (low, high) == (pytest.approx(curve.low, abs=0.015), pytest.approx(curve.high, abs=0.015))


@pytest.mark.parametrize("seed", range(5))
def test_beyond_the_samples_the_interval_is_never_narrower(seed):
    rng = np.random.default_rng(seed)
    # Nearly all solved, and few problems: where the fit alone is far too sure.
    counts = np.maximum(rng.binomial(64, rng.beta(0.8, 12, size=20)), rng.random(20) < 0.9)
    guess = extrapolate_pass_at_k(64, counts, [64, 65, 128, 1024])
    widths = guess.high - guess.low
    assert (widths[1:] >= widths[0] - 1e-12).all() and widths[0] > 0
    curve = pass_at_k_curve(64, counts, [64])
    assert guess.low[0] == curve.low[0] and guess.high[0] == curve.high[0]


SHAPES = {
    "steep, Beta(.2, 3)": lambda rng, size: rng.beta(0.2, 3, size),
    "steep, Beta(.3, 1)": lambda rng, size: rng.beta(0.3, 1, size),
    "flat": lambda rng, size: rng.random(size),
    "bimodal": lambda rng, size: np.where(rng.random(size) < 0.6, rng.beta(0.5, 60, size), rng.beta(20, 5, size)),
    "log-uniform, 1e-5 to 1": lambda rng, size: np.exp(rng.uniform(np.log(1e-5), 0, size)),
    "40 % never": lambda rng, size: rng.beta(0.5, 1, size) * (rng.random(size) < 0.6),
}


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [16, 64])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_coverage_of_the_95_percent_interval(shape, num_samples):
    ks = np.array([num_samples + 1, 2 * num_samples, 4 * num_samples, 16 * num_samples])
    rates = shape(np.random.default_rng(0), 2_000_000)
    truth = np.array([(1 - (1 - rates) ** k).mean() for k in ks])
    rng = np.random.default_rng(1)
    covered, trials, refused = np.zeros(ks.size), 60, 0
    for trial in range(trials):
        counts = rng.binomial(num_samples, shape(rng, 100))
        try:
            guess = extrapolate_pass_at_k(num_samples, counts, ks, num_resamples=500, seed=trial)
        except ValueError:
            refused += 1
        else:
            covered += (guess.low <= truth) & (truth <= guess.high)
    assert refused < 10
    # Two standard errors under 95 % for that many trials.
    assert (covered / (trials - refused) >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / trials)).all(), covered
