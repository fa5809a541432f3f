"""Kills and full disks at any moment: what was written stays, and the resumed run equals one that never stopped."""

import json
import random
import time
from pathlib import Path

import pytest
from forks import Forked
from forks import run as run_forked
from known_sampler import KnownSampler, make_problems
from lengths import KILLS
from tiny_models import save_checkpoint

from dco_trl.runs import RunStore, grade_run, load_results, sample_run
from dco_trl.sampling import SamplingParams

SCRIPT = Path(__file__).with_name("known_sampler.py")


def parts(run):
    """The content of all parts of samples and verdicts, by name."""
    return {path.relative_to(run): path.read_bytes() for path in sorted(run.rglob("part-*.parquet"))}


def held(folder, pid):
    try:
        return (folder / ".lock").read_text().startswith(f"process {pid} ")
    except OSError:
        return False


def kill(command, is_time, seed):
    """Start a process, kill it shortly after `is_time`, and return whether it was still at work."""
    moments = random.Random(seed)
    forked = Forked(*command)
    while forked.process.is_alive() and not is_time(forked.process.pid):
        time.sleep(0.001)
    time.sleep(moments.uniform(0, 0.03))
    return forked.kill()


def run_to_its_end(command):
    code, output = run_forked(*command)
    assert code == 0, output
    return output


def kill_until_done(command, run, folders, num_parts):
    """Kill the command `KILLS` times on its way to `num_parts` parts; nothing that was whole is ever lost.

    On a busy machine, the last kills may come when it has ended.
    """
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    seen, grown = parts(run), []
    first, last = len(seen), num_parts - 15
    for number in range(KILLS):
        target = first + int((last - first) * (number + moments.random()) / KILLS)
        target = max(target, len(seen) + 1 if number else 0)

        def is_time(pid, target=target):
            return any(held(folder, pid) for folder in folders) and len(list(run.rglob("part-*.parquet"))) >= target

        if not kill(command, is_time, seed + number):
            assert number > KILLS / 2, f"it ended before it was killed; seed {seed}"
            break
        now = parts(run)
        assert {name: now.get(name) for name in seen} == seen, f"seed {seed}"
        seen = now
        grown.append(len(seen))
    assert len(set(grown)) == len(grown), f"some kill came before the run went on: {grown}; seed {seed}"
    run_to_its_end(command)
    assert not list(run.rglob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["sample", "sample and grade"])
def test_an_evaluation_killed_at_any_moment_equals_one_never_stopped(tmp_path, steps):
    grader = ["known_sampler:slow_grader"] if steps != "sample" else []

    def command(run):
        return [SCRIPT, run, 40, 50, 20, 0.01, 200, *grader]

    run, whole = tmp_path / "run", tmp_path / "whole"
    run_to_its_end(command(whole))
    kill_until_done(command(run), run, [run, run / "grades/known_sampler-slow_grader"], len(parts(whole)))
    assert parts(run) == parts(whole) and len(parts(run)) == 100 * (1 + len(grader))
    if grader:
        assert load_results(run).problems == load_results(whole).problems


@pytest.mark.slow
def test_grading_killed_at_any_moment_equals_grading_never_stopped(tmp_path):
    grader, runs = "known_sampler:slow_grader", [tmp_path / "run", tmp_path / "whole"]
    for run in runs:
        sample_run(run, make_problems(40), KnownSampler(), 50, SamplingParams(), chunk_size=20, progress=False)
    command = [["dco_trl", "grade", run, "--grader", grader] for run in runs]
    run_to_its_end(command[1])
    kill_until_done(command[0], runs[0], [runs[0] / "grades/known_sampler-slow_grader"], len(parts(runs[1])))
    assert parts(runs[0]) == parts(runs[1]) and len(parts(runs[0])) == 200
    assert load_results(runs[0]).problems == load_results(runs[1]).problems


@pytest.fixture(scope="module")
def estimating(tmp_path_factory):
    """`dco-trl estimate` of a tiny checkpoint, as a command that writes the file it is given."""
    folder = tmp_path_factory.mktemp("place")
    save_checkpoint(folder / "MODEL", initializer_range=0.2)
    # Parquet compresses the long note, so only the output is a large file.
    rows = [{"prompt": f"{a}+1=", "completion": str(a + 1), "answer": a + 1, "note": "x" * 9_000} for a in range(8)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(output):
        data = ["--model", str(folder / "MODEL"), "--dataset", str(folder / "train.jsonl"), "--grader", "exact"]
        sampling = ["--num-samples", "64", "--max-tokens", "8", "--chunk-size", "8", "--batch-size", "8"]
        return ["dco_trl", "estimate", *data, *sampling, "--output", output]

    return command


@pytest.mark.slow
def test_estimate_killed_at_any_moment_writes_what_one_never_stopped_writes(tmp_path, estimating):
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    run_to_its_end(estimating(whole))
    run = tmp_path / "stopped.samples"
    kill_until_done(estimating(stopped), run, [run, run / "grades/exact"], len(parts(tmp_path / "whole.samples")))
    assert stopped.read_bytes() == whole.read_bytes()
    assert parts(run) == parts(tmp_path / "whole.samples")


@pytest.mark.slow
def test_a_full_disk_says_so_and_the_run_goes_on_later(tmp_path):
    run = tmp_path / "run"
    sample_run(run, make_problems(3), KnownSampler(), 4, chunk_size=4, progress=False)
    before = parts(run)
    code, output = run_forked(SCRIPT, run, 3, 20_000, 60_000, 0, 0, size=20_000)
    assert code == 1 and "StoreError" in output
    assert "could not be written (File too large). What was written before is unharmed. Free some" in output
    assert parts(run) == before and not list(run.rglob(".tmp-*"))
    sample_run(run, make_problems(3), KnownSampler(), 50, chunk_size=40, progress=False)
    assert [len(indices) for indices in RunStore(run).present().values()] == [50, 50, 50]


@pytest.mark.slow
def test_a_disk_that_is_full_while_grading(tmp_path):
    run = tmp_path / "run"
    for samples in (4, 4_000):
        sample_run(run, make_problems(3), KnownSampler(), samples, chunk_size=20_000, progress=False)
    code, output = run_forked("dco_trl", "grade", run, "--grader", "exact", size=4_000)
    assert code == 2 and "Traceback" not in output
    assert "could not be written (File too large). What was written before is unharmed. Free some" in output
    assert len(list((run / "grades/exact").glob("part-*"))) == 1 and not list(run.rglob(".tmp-*"))
    summary = grade_run(run, "exact", progress=False)
    assert (summary.num_samples, summary.num_new) == (12_000, 12_000 - 12)


@pytest.mark.slow
def test_a_disk_that_is_full_while_estimating(tmp_path, estimating):
    output = tmp_path / "out.jsonl"
    code, said = run_forked(*estimating(output), size=30_000)
    assert code == 2 and "Traceback" not in said
    assert f"{output} could not be written (File too large). What was written before is unharmed. Free" in said
    assert not output.exists() and not list(tmp_path.rglob(".tmp-*"))
    again = run_to_its_end(estimating(output))
    assert "nothing to draw" in again and "(0 of them now)" in again
    assert len(output.read_text().splitlines()) == 8
