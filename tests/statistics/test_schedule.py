"""Schedules of attempts: against every split, against one arm alone, and on problems that they were not planned on."""

import json
import re
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dco_trl.statistics import (
    AttemptOrder,
    cross_fit_schedule,
    exact_pass_at_k,
    pass_at_k,
    plan_attempts,
    scheduled_pass_at_k,
)
from dco_trl.statistics.arm_coverage import check_arms


def rates(rng, num_arms, num_problems):
    return rng.beta(0.3, 1.5, size=(num_arms, num_problems))


def measurements(rng, kind, num_arms=3, num_problems=6):
    p = np.maximum(rates(rng, num_arms, num_problems), 1e-300)
    n = rng.integers(1, 20, size=p.shape)
    counts = {"num_sampled": n, "num_correct": rng.binomial(n, p)}
    if kind == "log_p":
        return {"log_p": np.log(p)}
    if kind == "counts":
        return counts
    return {"log_p": np.where(rng.random(p.shape) < 0.5, np.log(p), np.nan), **counts}


KINDS = ["log_p", "counts", "both"]
ONE = plan_attempts(4, log_p=[[-1.0]])


def arms_of(data):
    return check_arms(data.get("log_p"), data.get("num_sampled"), data.get("num_correct"))


# planning


@pytest.mark.parametrize("kind", KINDS)
def test_against_every_split_of_whole_attempts(kind):
    shortfall = []
    for seed in range(20):
        data = measurements(np.random.default_rng(seed), kind)
        arms, schedule = arms_of(data), plan_attempts(8, **data)
        for j, k in enumerate(schedule.k):
            splits = (np.array(split) for split in product(range(k + 1), repeat=3) if sum(split) == k)
            best = max(arms.planned_coverage(split).mean() for split in splits)
            assert schedule.coverage[j] == pytest.approx(arms.planned_coverage(schedule.counts(k)).mean(), rel=1e-12)
            assert schedule.coverage[j] <= best + 1e-12 <= schedule.optimum[j] + 1e-6
            assert schedule.coverage[j] >= (1 - 1 / np.e) * best  # what greedy choice guarantees
            shortfall.append(best - schedule.coverage[j])
    assert np.mean(shortfall) < 0.002 and np.max(shortfall) < 0.05
    assert np.mean(shortfall) > 0 or kind == "counts"  # one order is not the best of all splits


def test_the_first_attempts_are_the_greedy_choice():
    """By definition: one attempt at a time, with the naive formula."""
    p = rates(np.random.default_rng(1), 5, 40)
    split, counts = np.zeros(5, dtype=int), plan_attempts(32, log_p=np.log(p)).counts(np.arange(33))
    for k in range(1, 33):
        gains = [(1 - np.prod((1 - p) ** (split + one)[:, None], axis=0)).mean() for one in np.eye(5, dtype=int)]
        split[np.argmax(gains)] += 1
        assert counts[k].tolist() == split.tolist()


def test_blocks_grow_and_lose_little():
    p = rates(np.random.default_rng(2), 6, 200) ** 3  # small enough that 4096 attempts do not saturate
    schedule = plan_attempts(4096, log_p=np.log(p))
    assert len(schedule.arm) < 250 and schedule.num_attempts == 4096
    assert (schedule.gap[schedule.k >= 64] < 0.01).all() and (schedule.gap >= -1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_arm_is_pass_at_k(kind):
    data = measurements(np.random.default_rng(3), kind, num_arms=1, num_problems=30)
    schedule = plan_attempts(16, **data)
    assert schedule.counts([1, 7, 16]).tolist() == [[1], [7], [16]]
    assert schedule.optimum == pytest.approx(schedule.coverage, abs=1e-9)
    if kind == "log_p":
        exact = exact_pass_at_k(data["log_p"][0][:, None], schedule.k)
        np.testing.assert_allclose(scheduled_pass_at_k(schedule, schedule.k, **data), exact, rtol=1e-12)
        assert schedule.coverage == pytest.approx(exact.mean(axis=0), rel=1e-12)
    elif kind == "counts":
        n, c = data["num_sampled"].T, data["num_correct"].T
        k = np.arange(1, n.min() + 1)
        np.testing.assert_allclose(scheduled_pass_at_k(schedule, k, **data), pass_at_k(n, c, k), atol=1e-15)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_coverage_is_concave_and_the_order_nested(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    arms_data = measurements(rng, data.draw(st.sampled_from(KINDS)))
    arms, total = arms_of(arms_data), data.draw(st.integers(1, 300))
    one, other = (rng.exponential(10 ** rng.uniform(-1, 3), size=3) for _ in range(2))
    (at_one, slope), (at_other, _), (middle, _) = (
        arms.coverage_and_gradient(split) for split in (one, other, (one + other) / 2)
    )
    assert middle >= (at_one + at_other) / 2 - 1e-12
    assert at_other <= at_one + slope @ (other - one) + 1e-12  # under its tangents, so the gradient is one
    counts = plan_attempts(total, **arms_data).counts(np.arange(total + 1))
    assert counts.dtype == np.int64 and counts.sum(axis=1).tolist() == list(range(total + 1))
    assert (np.diff(counts, axis=0) >= 0).all()


def test_many_counts_give_the_schedule_of_exact_p():
    rng = np.random.default_rng(4)
    p = np.maximum(rates(rng, 4, 100), 1e-300)
    exact = plan_attempts(256, log_p=np.log(p))

    def shortfall(num_samples):
        n = np.full(p.shape, num_samples)
        schedule = plan_attempts(256, num_sampled=n, num_correct=rng.binomial(n, p))
        best, got = (scheduled_pass_at_k(s, s.k, log_p=np.log(p)).mean(axis=0) for s in (exact, schedule))
        return np.abs(best - got).max(), np.abs(schedule.coverage - got).max()

    few, many = shortfall(4), shortfall(10**6)
    assert many[0] < 1e-3 < few[0] and many[1] < 1e-3 < few[1]


def test_an_arm_that_was_not_measured_on_a_problem_is_worth_its_prior():
    n, c = np.full((2, 50), 8), np.zeros((2, 50), dtype=int)
    c[0] = 6
    n[1, :25] = 0
    schedule = plan_attempts(2, num_sampled=n, num_correct=c)
    assert schedule.counts(2).tolist() == [2, 0]
    assert schedule.coverage[0] == pytest.approx(0.75, abs=0.02)


def test_certain_and_hopeless_answers():
    schedule = plan_attempts(64, log_p=[[0.0, -np.inf, -np.inf], [-np.inf, 0.0, -np.inf]])
    assert schedule.counts(2).tolist() == [1, 1]
    assert schedule.coverage.tolist() == pytest.approx([1 / 3] + [2 / 3] * 6)
    assert np.isfinite(schedule.optimum).all()


def test_the_last_block_goes_on_beyond_the_plan():
    schedule = plan_attempts(20, log_p=np.log(rates(np.random.default_rng(5), 3, 20)))
    more = schedule.counts(1000) - schedule.counts(20)
    assert more[schedule.arm[-1]] == more.sum() == 980 and schedule.counts(1000).sum() == 1000


def test_a_schedule_survives_json():
    schedule = plan_attempts(100, log_p=np.log(rates(np.random.default_rng(6), 3, 20)))
    again = AttemptOrder.from_dict(json.loads(json.dumps(schedule.to_dict())))
    np.testing.assert_array_equal(again.counts(np.arange(101)), schedule.counts(np.arange(101)))
    np.testing.assert_array_equal(again.gap, schedule.gap)
    assert again.num_attempts == 100 and again.num_arms == 3


# measuring


def test_the_estimator_is_unbiased():
    p, n = np.array([0.3, 0.05]), np.array([5, 4])
    schedule = AttemptOrder.from_dict(
        {"num_arms": 2, "blocks": [[0, 2], [1, 3]], "k": [], "coverage": [], "optimum": []}
    )
    mean = np.zeros(3)
    for c in product(range(6), range(5)):
        value = scheduled_pass_at_k(schedule, [1, 3, 5], num_sampled=n[:, None], num_correct=np.array(c)[:, None])[0]
        naive = [
            1 - comb(5 - c[0], a) / comb(5, a) * comb(4 - c[1], b) / comb(4, b) for a, b in ((1, 0), (2, 1), (2, 3))
        ]
        np.testing.assert_allclose(value, naive, atol=1e-14)
        mean += np.prod(stats.binom.pmf(c, n, p)) * value
    expected = [1 - 0.7, 1 - 0.7**2 * 0.95, 1 - 0.7**2 * 0.95**3]
    np.testing.assert_allclose(mean, expected, rtol=1e-12)


def test_exact_and_counted_arms_multiply():
    schedule = plan_attempts(4, log_p=np.log([[0.5], [0.1]]))
    data = {"log_p": [[np.log(0.5)], [np.nan]], "num_sampled": [[0], [4]], "num_correct": [[0], [1]]}
    a, b = schedule.counts(4)
    expected = 1 - 0.5**a * (1 - (pass_at_k(4, 1, b) if b else 0))
    assert scheduled_pass_at_k(schedule, [4], **data)[0, 0] == pytest.approx(expected)


def test_cross_fitting_finds_the_gain_of_arms_that_complement_each_other():
    rng = np.random.default_rng(8)
    log_p = np.log(rates(rng, 3, 600))
    expected = cross_fit_schedule([1, 16, 64], log_p=log_p, given_arms=[2, 0])
    alone = exact_pass_at_k(log_p[2][:, None], [1, 16, 64]).mean(axis=0)
    assert expected.given_arms[0].first == pytest.approx(alone)
    assert len(expected.given_arms) == 2
    assert (expected.best_arm.low[1:] > 0.02).all() and abs(expected.best_arm.difference[0]) < 1e-12
    np.testing.assert_allclose(expected.curve.estimate, expected.best_arm.second)
    naive = 1 - np.prod((1 - np.exp(log_p)) ** np.array([6, 5, 5])[:, None], axis=0)
    assert expected.equal_split.first[1] == pytest.approx(naive.mean())
    whole = plan_attempts(64, log_p=log_p)
    at_64 = scheduled_pass_at_k(whole, 64, log_p=log_p).mean()
    assert expected.curve.low[2] < at_64 < expected.curve.high[2]


def test_the_same_attempts_differ_by_nothing_and_equal_values_do_not_say_so():
    log_p = np.log(np.array([[0.5, 0.4, 0.3, 0.2], [0.1, 0.1, 0.1, 0.1]]))
    expected = cross_fit_schedule([1, 2], log_p=log_p, given_arms=[0, 1])
    for rival in (expected.best_arm, expected.given_arms[0]):
        assert rival.low.tolist() == rival.high.tolist() == [0.0, 0.0]
    assert (expected.given_arms[1].low != expected.given_arms[1].high).all()
    # Two arms that are equal on every problem that was seen may differ on the next.
    twins = cross_fit_schedule([2], log_p=log_p[[0, 0]], given_arms=[1])
    assert twins.given_arms[0].difference[0] == 0 and twins.given_arms[0].low[0] < 0 < twins.given_arms[0].high[0]


def test_luck_in_the_samples_is_no_gain():
    """Thirty equal arms: choosing among them on the problems that are measured would show a gain."""
    rng = np.random.default_rng(9)
    p = rng.beta(0.5, 3, size=60)
    n = np.full((30, 60), 8)
    c = rng.binomial(n, p)
    expected = cross_fit_schedule([1], num_sampled=n, num_correct=c)
    best_in_sample = (c / n).mean(axis=1).max()
    assert best_in_sample > p.mean() + 0.02
    assert expected.best_arm.first[0] < best_in_sample - 0.01
    assert expected.curve.low[0] < p.mean() < expected.curve.high[0]


def test_a_half_is_measured_with_what_the_other_chose():
    # Each arm solves one of two problems: the best arm of the other half is always wrong.
    expected = cross_fit_schedule([1, 2], log_p=[[0.0, -np.inf], [-np.inf, 0.0]])
    assert expected.best_arm.first.tolist() == [0.0, 0.0] and expected.curve.estimate[0] == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_attempts(4), "give log_p, or num_sampled and num_correct, or all three"),
        (lambda: plan_attempts(4, num_sampled=[[1]]), "give log_p, or num_sampled and num_correct"),
        (lambda: plan_attempts(0, log_p=[[-1.0]]), "`num_attempts` must be an integer of at least 1, got 0"),
        (lambda: plan_attempts(4, log_p=[-1.0]), "one row per arm and one column per problem, got shapes (1,)"),
        (lambda: plan_attempts(4, log_p=[[-1.0, np.nan]]), "log_p is NaN for arm 0 and problem 1 (counted from 0; 1"),
        (
            # Arm 1 has counts, so its NaN may stand for them; arm 0 has none, so its NaN is wrong.
            lambda: plan_attempts(
                4, log_p=[[-1.0, np.nan], [np.nan, np.nan]], num_sampled=[[0, 0], [4, 0]], num_correct=np.zeros((2, 2))
            ),
            "arm 0 and problem 1 (counted from 0; 1 in all), and there are no counts of that arm. Leave the arm or",
        ),
        (lambda: plan_attempts(4, log_p=[[0.5]]), "log_p must be a log-probability, at most 0, got 0.5"),
        (lambda: plan_attempts(4, log_p=[[0]], num_sampled=[[1, 1]], num_correct=[[0, 0]]), "(1, 1) and (1, 2)"),
        (lambda: plan_attempts(4, num_sampled=[[4]], num_correct=[[5]]), "num_correct=5 is more than num_sampled=4"),
        (lambda: plan_attempts(4, num_sampled=[[4.5]], num_correct=[[1]]), "num_sampled must be whole numbers"),
        (
            lambda: plan_attempts(4, num_sampled=[[4, 4], [0, 0]], num_correct=[[1, 1], [0, 0]]),
            "arm 1 (counted from 0; 1 such arms) has neither a log_p nor a sample of any problem",
        ),
        (lambda: ONE.counts(-1), "k must be whole numbers of at least 0, got -1"),
        (lambda: scheduled_pass_at_k(ONE, 1, log_p=[[-1], [-2]]), "is for 1 arms, but the measurements have 2"),
        (
            lambda: scheduled_pass_at_k(ONE, 4, num_sampled=[[3]], num_correct=[[1]]),
            "4 attempts of arm 0 are more than its 3 samples of problem 0 (both counted from 0). Draw more samples",
        ),
        (lambda: scheduled_pass_at_k(ONE, [], log_p=[[-1.0]]), "k is empty"),
        (lambda: cross_fit_schedule(4, log_p=[[-1.0]]), "there is one problem, but one half is planned on"),
        (lambda: plan_attempts(4, log_p=[[-1.0]], max_arms=0), "`max_arms` must be an integer of at least 1, got 0"),
        (lambda: cross_fit_schedule(1, log_p=[[-1.0, -1.0]], max_arms=1.5), "`max_arms` must be an integer"),
        (lambda: cross_fit_schedule(4, log_p=[[-1.0, -2.0]], given_arms=[1]), "names arm 1, but there are 1 arms"),
        (
            lambda: cross_fit_schedule(9, num_sampled=[[9, 8]], num_correct=[[1, 1]]),
            "k=9 is more than the 8 samples that some arm has of some problem",
        ),
        (lambda: AttemptOrder.from_dict({"num_arms": 1}), "schedule has no blocks, k, coverage, optimum: it needs"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": []}, "blocks must be a list of pairs of an arm and its number of attempts, at least one"),
        ({"blocks": [[0, 1], [0]]}, "blocks must be a list of pairs"),
        ({"blocks": [[2, 1]]}, "blocks name arm 2 of 2 arms (counted from 0)"),
        ({"blocks": [[0, 0]]}, "`attempts of a block` must be an integer of at least 1, got 0"),
        ({"blocks": [[-1, 3]]}, "`arm of a block` must be an integer of at least 0, got -1"),
        ({"num_arms": 0}, "`num_arms` must be an integer of at least 1, got 0"),
        ({"k": [1, 2]}, "k, coverage and optimum must be lists of one length"),
    ],
)
def test_a_file_that_makes_no_schedule_is_refused(changes, message):
    entries = {"num_arms": 2, "blocks": [[0, 1]], "k": [1], "coverage": [0.5], "optimum": [0.5], **changes}
    with pytest.raises(ValueError, match=re.escape(message)):
        AttemptOrder.from_dict(entries)
    with pytest.raises(ValueError, match="the schedule has no num_arms, blocks"):
        AttemptOrder.from_dict(None)  # what an empty YAML file holds


# few arms


@pytest.mark.parametrize("kind", KINDS)
def test_two_of_many_arms_are_nearly_the_best_two(kind):
    data = measurements(np.random.default_rng(5), kind, num_arms=5, num_problems=40)
    arms, ks = arms_of(data), [1, 4, 16, 64]

    def value(schedule):
        return np.mean([arms.planned_coverage(split).mean() for split in schedule.counts(ks)])

    few = plan_attempts(64, **data, max_arms=2)
    assert few.num_arms == 5 and np.unique(few.arm).size == 2 and few.counts(64).sum() == 64
    pairs = [[i, j] for i in range(5) for j in range(i)]
    best = max(
        plan_attempts(64, **{name: np.asarray(x)[pair] for name, x in data.items()}).coverage[::2].mean()
        for pair in pairs
    )
    assert best - 0.01 <= value(few) <= best + 1e-9
    assert value(plan_attempts(64, **data)) >= value(few) >= value(plan_attempts(64, **data, max_arms=1))
    np.testing.assert_allclose(few.coverage[::2].mean(), value(few))


def test_no_arm_is_chosen_that_is_not_needed():
    log_p = np.log([[0.5, 0.5], [0.4, 0.4], [0.3, 0.2]])
    everything, few = plan_attempts(16, log_p=log_p), plan_attempts(16, log_p=log_p, max_arms=2)
    assert few.arm.tolist() == everything.arm.tolist() == [0]


def test_cross_fitting_chooses_few_arms_on_the_other_half():
    log_p = np.log(np.clip(np.random.default_rng(0).beta(0.3, 2, size=(6, 200)), 1e-12, 1))
    all_arms, two = (cross_fit_schedule([1, 16], log_p=log_p, max_arms=n) for n in (None, 2))
    assert two.curve.estimate[1] < all_arms.curve.estimate[1] - 0.05
    halves = np.array_split(np.random.default_rng(0).permutation(200), 2)
    by_hand = [
        scheduled_pass_at_k(plan_attempts(16, log_p=log_p[:, other], max_arms=2), [1, 16], log_p=log_p[:, half])
        for half, other in (halves, halves[::-1])
    ]
    np.testing.assert_allclose(two.curve.estimate, np.concatenate(by_hand).mean(axis=0))
