"""Merged ranges equal the run of one process, with each sample once, or nothing is copied."""

import shutil

import pytest
from known_sampler import KnownSampler, make_problems, rows

from dco_trl.cli import main
from dco_trl.runs import RunStore, StoreError, grade_run, load_results, sample_run
from dco_trl.runs.merge import merge_runs
from dco_trl.sampling import SamplingParams


def draw(folder, first, count, grader="exact", params=None, problems=5):
    sizes = {"first_sample": first, "chunk_size": 40}
    sample_run(folder, make_problems(problems), KnownSampler(), count, params, progress=False, **sizes)
    if grader:
        grade_run(folder, grader, progress=False)
    return folder


@pytest.mark.slow
def test_ranges_drawn_apart_are_one_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ranges = [draw(tmp_path / f"ce.{i}", first, 50) for i, first in enumerate((0, 50, 100))]
    assert {tuple(indices[[0, -1]]) for indices in RunStore(ranges[1]).present().values()} == {(50, 99)}
    whole = draw(tmp_path / "whole", 0, 150)
    assert main(["merge", *map(str, ranges), "--output", "ce"]) == 0
    assert capsys.readouterr().out == "750 samples in ce\n"
    assert rows(tmp_path / "ce") == rows(whole)
    assert load_results(tmp_path / "ce").problems == load_results(whole).problems  # the verdicts came along
    assert grade_run(tmp_path / "ce", "exact", progress=False).num_new == 0
    # Again, as after a kill: what is there stays, and what is missing is copied.
    part = RunStore(tmp_path / "ce").sample_parts()[3]
    part.unlink()
    for verdicts in (tmp_path / "ce/grades/exact").glob(f"{part.stem}-*"):
        verdicts.unlink()
    assert merge_runs(ranges, tmp_path / "ce") == 750
    assert load_results(tmp_path / "ce").problems == load_results(whole).problems
    # And sampling continues it like any run.
    assert sample_run(tmp_path / "ce", make_problems(5), KnownSampler(), 160, progress=False).num_drawn == 50


def test_what_is_not_one_run_is_refused_before_anything_is_copied(tmp_path, capsys):
    first = draw(tmp_path / "first", 0, 50)
    for other, told in (
        (draw(tmp_path / "hot", 50, 50, params=SamplingParams(temperature=2.0)), "sampling.temperature: the run"),
        (draw(tmp_path / "more", 50, 50, problems=6), "num_problems: the run has 5, now 6"),
        (draw(tmp_path / "same", 49, 50), r"sample 49 of problem 'p0' is in .*same.* Each run needs a range"),
        (first, "sample 0 of problem 'p0' is in .*first.*--first-sample"),
    ):
        with pytest.raises(StoreError, match=told):
            merge_runs([first, other], tmp_path / "whole")
    damaged = draw(tmp_path / "damaged", 50, 50)
    part = RunStore(damaged).sample_parts()[0]
    part.write_bytes(part.read_bytes()[:-9] + b"x" + part.read_bytes()[-8:])
    with pytest.raises(StoreError, match="damaged/samples/part-000000-.* is damaged"):
        merge_runs([first, damaged], tmp_path / "whole")
    header = draw(tmp_path / "old", 50, 50) / "grades/exact/grader.json"
    header.write_text('{"grader": "exact", "source": "another"}')
    with pytest.raises(StoreError, match="verdicts of grader 'exact' with source 'another', and 'exact' now"):
        merge_runs([first, tmp_path / "old"], tmp_path / "whole")
    with pytest.raises(StoreError, match="there are no runs to merge: name the folders"):
        merge_runs([], tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    # The same holds for samples that the merged run has drawn itself meanwhile,
    draw(tmp_path / "whole", 0, 10)
    assert main(["merge", str(first), "--output", str(tmp_path / "whole")]) == 2
    assert "sample 0 of problem 'p0' is in" in capsys.readouterr().err
    # and for its verdicts of another version.
    (tmp_path / "whole/grades/exact/grader.json").write_text('{"grader": "exact", "source": "another"}')
    later = draw(tmp_path / "later", 50, 50)
    with pytest.raises(StoreError, match="verdicts of grader 'exact' with source '"):
        merge_runs([later], tmp_path / "whole")
    assert {len(indices) for indices in RunStore(tmp_path / "whole").present().values()} == {10}
    shutil.rmtree(tmp_path / "whole")
    with pytest.raises(ValueError, match="`first_sample` must be an integer of at least 0, got -1"):
        draw(tmp_path / "whole", -1, 10)
