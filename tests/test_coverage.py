"""`dco_trl.coverage` against the naive formula in mpmath and autograd, and its NumPy twin against both."""

import math
import re
from functools import lru_cache

import jaxtyping
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dco_trl import coverage_loss, coverage_numpy, coverage_weight, log_coverage

ATTEMPTS = [1, 2, 3, 16, 256, 4096, 10**6, 10**9]
LOG_P = [-1e4, -745.0, -50.0, -37.1, -36.9, -20.0, -5.0, -1.0, -0.7, -0.69, -0.1, -1e-3, -1e-12, 0.0]


@lru_cache
def exact(log_p: float, num_attempts: int) -> tuple[mpmath.mpf, mpmath.mpf]:
    """F and log C from their definitions, with as many digits as it takes."""
    digits = 100 + int(abs(log_p) * 0.87 + num_attempts * math.exp(log_p) * 0.44 if log_p > -700 else abs(log_p))
    with mpmath.workdps(min(digits, 20_000)):
        p = mpmath.exp(mpmath.mpf(log_p))
        if p == 1:
            return mpmath.mpf(num_attempts == 1), mpmath.mpf(0)
        miss = mpmath.exp(num_attempts * mpmath.log1p(-p))
        weight = num_attempts * p * miss / (1 - p) / (1 - miss)
        return weight, mpmath.log1p(-miss)


@pytest.fixture
def unchecked_types():
    """Switch off jaxtyping, which refuses wrong types first; users run without it and see our own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize("num_attempts", ATTEMPTS)
@pytest.mark.parametrize("log_p", LOG_P)
def test_matches_mpmath(log_p, num_attempts, library):
    true_weight, true_log_coverage = exact(log_p, num_attempts)
    if library == "torch":
        weight = coverage_weight(float64(log_p), num_attempts).item()
        log_c = log_coverage(float64(log_p), num_attempts).item()
    else:
        weight = coverage_numpy.coverage_weight(log_p, num_attempts)
        log_c = coverage_numpy.log_coverage(log_p, num_attempts)
        assert abs(coverage_numpy.coverage(log_p, num_attempts) - mpmath.exp(true_log_coverage)) < 1e-14
    if true_weight > mpmath.mpf("1e-280"):
        assert abs(weight / true_weight - 1) < 1e-10
    else:
        assert 0 <= weight < 1e-279
    assert abs(log_c - true_log_coverage) <= 1e-14 * max(1, abs(true_log_coverage))
    if abs(true_log_coverage) > mpmath.mpf("1e-290"):
        assert abs(log_c / true_log_coverage - 1) < 1e-12


@pytest.mark.filterwarnings("error")
def test_numpy_twin_equals_torch_everywhere_and_broadcasts():
    rng = np.random.default_rng(0)
    log_p = np.concatenate([-(10 ** rng.uniform(-18, 5, size=500)), LOG_P, [-np.inf]])
    table = [
        coverage_numpy.coverage_weight(log_p[:, None], ATTEMPTS),
        coverage_numpy.log_coverage(log_p[:, None], ATTEMPTS),
    ]
    for j, num_attempts in enumerate(ATTEMPTS):
        for function, values in zip((coverage_weight, log_coverage), table, strict=True):
            expected = function(torch.from_numpy(log_p), num_attempts).numpy()
            np.testing.assert_allclose(values[:, j], expected, rtol=1e-10, atol=1e-300)


# PAPER: F = 0.5 and F = 0.1 at these p (derived there and checked numerically).
@pytest.mark.parametrize(
    ("num_attempts", "half", "tenth"),
    [(16, 0.079, 0.210), (64, 0.0197, 0.0555), (256, 0.00491, 0.0141), (1024, 0.00123, 0.00353)],
)
def test_golden_points(num_attempts, half, tenth):
    assert coverage_weight(float64(half).log(), num_attempts).item() == pytest.approx(0.5, abs=0.005)
    assert coverage_weight(float64(tenth).log(), num_attempts).item() == pytest.approx(0.1, abs=0.002)


def test_one_attempt_is_cross_entropy_exactly():
    log_p = float64(-math.inf, *LOG_P)
    assert torch.equal(coverage_weight(log_p, 1), torch.ones_like(log_p))
    assert torch.equal(coverage_loss(log_p, 1), -log_p)


@pytest.mark.parametrize("num_attempts", ATTEMPTS)
def test_ends(num_attempts):
    assert log_coverage(float64(1e-7), num_attempts).item() == 0.0  # a sum that rounds above zero is zero
    log_p = float64(-math.inf, 0.0).requires_grad_()
    log_c = log_coverage(log_p, num_attempts)
    assert log_c.tolist() == [-math.inf, 0.0]
    (gradient,) = torch.autograd.grad(log_c.sum(), log_p)
    assert gradient.tolist() == [1.0, 1.0 if num_attempts == 1 else 0.0]
    (curvature,) = torch.autograd.grad(coverage_weight(log_p, num_attempts).sum(), log_p)
    assert curvature.isfinite().all()


@pytest.mark.parametrize("num_attempts", [1, 2, 3, 16, 1000])
def test_gradients(num_attempts):
    log_p = float64(-12.0, -5.0, -1.0, -0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: log_coverage(x, num_attempts, validate=False), log_p)
    assert torch.autograd.gradgradcheck(lambda x: log_coverage(x, num_attempts, validate=False), log_p)
    (gradient,) = torch.autograd.grad(log_coverage(log_p, num_attempts).sum(), log_p)
    torch.testing.assert_close(gradient, coverage_weight(log_p, num_attempts).detach())


@settings(deadline=None, max_examples=200)
@given(log_p=st.floats(-1e5, 0.0), num_attempts=st.integers(1, 10**9))
@pytest.mark.slow
def test_weight_is_a_finite_share_that_falls_in_p_and_in_attempts(log_p, num_attempts):
    x = float64(log_p, log_p / 2).requires_grad_()
    weight = coverage_weight(x, num_attempts)
    assert ((0 <= weight) & (weight <= 1)).all()
    assert weight[1] <= weight[0] + 1e-12
    assert (coverage_weight(x, num_attempts + 1) <= weight + 1e-9).all()
    (gradient,) = torch.autograd.grad(coverage_loss(x, num_attempts).sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("num_required", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 1, 3)])
def test_any_shape_and_dtype(dtype, shape, num_required):
    log_p = torch.full(shape, -2.0, dtype=dtype)
    for function in (log_coverage, coverage_weight, coverage_loss):
        value = function(log_p, 16, num_required=num_required)
        assert value.shape == shape and value.dtype == dtype
        torch.testing.assert_close(value, function(log_p.double(), 16, num_required=num_required).to(dtype))


@pytest.mark.parametrize("function", [log_coverage, coverage_weight, coverage_loss])
@pytest.mark.parametrize("num_attempts", [0, -1, 1.0, 2.5, True, "16", None, math.nan])
def test_refuses_num_attempts(unchecked_types, function, num_attempts):
    with pytest.raises(
        ValueError, match=r"`num_attempts` must be an integer of at least 1 .*, got " + re.escape(repr(num_attempts))
    ):
        function(float64(-1.0), num_attempts)


@pytest.mark.parametrize("function", [log_coverage, coverage_weight, coverage_loss])
def test_refuses_log_p(unchecked_types, function):
    with pytest.raises(ValueError, match="`log_p` holds a NaN"):
        function(float64(-1.0, math.nan), 16)
    with pytest.raises(ValueError, match="`log_p` must be at most 0, got 0.25: it is a natural log-probability"):
        function(float64(-1.0, 0.25), 16)
    with pytest.raises(TypeError, match="floating-point tensor of log-probabilities, got a tensor of torch.int64"):
        function(torch.tensor([-1]), 16)
    with pytest.raises(TypeError, match="floating-point tensor of log-probabilities, got float"):
        function(-1.0, 16)


@pytest.mark.parametrize("num_attempts", [1, 16])
def test_without_validation_a_nan_stays_one(num_attempts):
    assert coverage_weight(float64(math.nan), num_attempts, validate=False).isnan().all()
    assert coverage_loss(float64(math.nan), num_attempts, validate=False).isnan().all()


# ------------------------------------------------------------------ at least m of N


def exact_tail(log_p: float, num_attempts: int, num_required: int) -> tuple[mpmath.mpf, mpmath.mpf]:
    """log P[Binomial(N, p) >= m] and m C(N, m) p^m (1-p)^(N-m) / B, by the regularised incomplete beta function."""
    n, m = num_attempts, num_required
    with mpmath.workdps(80):
        p = mpmath.exp(mpmath.mpf(log_p))
        tail, rest = (mpmath.betainc(m, n - m + 1, *ends, regularized=True) for ends in ((0, p), (p, 1)))
        weight = m * mpmath.binomial(n, m) * p**m * (1 - p) ** (n - m) / tail
        return mpmath.log(tail) if tail < 0.5 else mpmath.log1p(-rest), weight


@pytest.mark.parametrize(
    ("num_attempts", "num_required"),
    [(2, 2), (5, 3), (64, 2), (64, 32), (64, 64), (1000, 2), (1000, 999), (10_000, 2), (10_000, 100), (1000, 500)],
)
def test_at_least_m_of_n_matches_mpmath(num_attempts, num_required):
    log_p = [-1e4, -700.0, -50.0, -9.0, -5.0, -2.0, -0.7, -0.1, -1e-3, -1e-9]
    tails = log_coverage(float64(*log_p), num_attempts, num_required=num_required).tolist()
    weights = coverage_weight(float64(*log_p), num_attempts, num_required=num_required).tolist()
    for x, tail, weight in zip(log_p, tails, weights, strict=True):
        true_tail, true_weight = exact_tail(x, num_attempts, num_required)
        assert abs(tail - true_tail) < 1e-9 * max(1, abs(true_tail))
        assert abs(weight - true_weight) < max(1e-9 * true_weight, mpmath.mpf("1e-250"))


def test_numbers_may_be_numpys(unchecked_types):
    log_p = float64(*LOG_P, -math.inf)
    for n, m in ((np.int64(16), 1), (np.uint8(200), np.uint8(3))):
        for function in (log_coverage, coverage_weight):
            assert torch.equal(function(log_p, n, num_required=m), function(log_p, int(n), num_required=int(m)))


def test_all_of_n_is_n_times_cross_entropy():
    log_p = float64(-math.inf, -1e4, -3.0, -0.1, 0.0)
    torch.testing.assert_close(log_coverage(log_p, 7, num_required=7), 7 * log_p)
    torch.testing.assert_close(coverage_weight(log_p, 7, num_required=7), torch.full_like(log_p, 7.0))


@pytest.mark.parametrize(("num_attempts", "num_required"), [(2, 2), (16, 3), (16, 15), (300, 40)])
def test_gradients_of_at_least_m_of_n(num_attempts, num_required):
    def tail(x):
        return log_coverage(x, num_attempts, num_required=num_required)

    log_p = float64(-8.0, -3.0, -0.5, -0.01).requires_grad_()
    assert torch.autograd.gradcheck(tail, log_p) and torch.autograd.gradgradcheck(tail, log_p)
    ends = float64(-math.inf, -1e4, 0.0).requires_grad_()
    (gradient,) = torch.autograd.grad(tail(ends).sum(), ends, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient.sum(), ends)
    torch.testing.assert_close(gradient, coverage_weight(ends, num_attempts, num_required=num_required))
    expected = float64(num_required, num_required, num_required if num_required == num_attempts else 0.0)
    torch.testing.assert_close(gradient.detach(), expected)
    assert curvature.isfinite().all()


@settings(deadline=None)
@given(st.integers(2, 60), st.data())
@pytest.mark.slow
def test_at_least_m_of_n_falls_in_m_and_its_weight_in_p(num_attempts, data):
    log_p = float64(*data.draw(st.lists(st.floats(-30, 0), min_size=2, max_size=5))).sort().values
    tails = torch.stack([log_coverage(log_p, num_attempts, num_required=m) for m in range(1, num_attempts + 1)])
    assert (tails.diff(dim=0) <= 1e-12).all()
    weights = coverage_weight(log_p, num_attempts, num_required=data.draw(st.integers(1, num_attempts)))
    assert (weights.diff() <= 1e-9).all()


def test_many_terms_are_worked_off_in_pieces(monkeypatch):
    whole = log_coverage(float64(*LOG_P), 16, num_required=3)
    monkeypatch.setattr("dco_trl.coverage._MAX_TERMS", 20)  # one row at a time
    assert torch.equal(log_coverage(float64(*LOG_P), 16, num_required=3), whole)


@pytest.mark.parametrize(
    ("num_required", "message"),
    [
        (0, "`num_required` must be an integer of at least 1 (1 is coverage: one right attempt is enough), got 0."),
        (2.0, "got 2.0."),
        (True, "got True."),
        (5, "`num_required=5` is more than `num_attempts=4`: so many attempts cannot be right."),
    ],
)
def test_refuses_a_required_number_that_cannot_be(num_required, message, unchecked_types):
    with pytest.raises(ValueError, match=re.escape(message)):
        coverage_weight(float64(-1.0), 4, num_required=num_required)
