"""The manifest: what a run is draws of, what may differ when it goes on, and how damage is reported."""

import hashlib
import json

import numpy as np
import pytest
from known_sampler import KnownSampler, contents, make_problems

from dco_trl.runs import RunStore, StoreError, sample_run
from dco_trl.sampling import SamplingParams


def draw(folder, samples=2, problems=2, params=None, **identity):
    return sample_run(folder, make_problems(problems), KnownSampler(**identity), samples, params, progress=False)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"extra_body": {"min_p": 0.1}}, {"extra_body": {"min_p": 0.2}}, "extra_body.min_p: the run has 0.1, now 0.2"),
        ({"extra_body": {"a": {"b": 1}}}, {"extra_body": {"a": {}}}, "extra_body.a.b: the run has 1, now '(nothing)'"),
        ({}, {"extra_body": {"top_k": 5}}, "extra_body.top_k: the run has '(nothing)', now 5"),
        ({"sampler_kwargs": {"quantization": "fp8"}}, {}, "sampler_kwargs.quantization: the run has 'fp8', now"),
        ({"dtype": "bfloat16"}, {"dtype": "float16"}, "dtype: the run has 'bfloat16', now 'float16'"),
        # A version at the top is free; an option of that name is not.
        ({"options": {"version": 1}}, {"options": {"version": 2}}, "options.version: the run has 1, now 2"),
        ({}, {"model": "other"}, "model: the run has 'known', now 'other'"),
        ({}, {"problems": 3}, "num_problems: the run has 2, now 3"),
        ({}, {"params": SamplingParams(temperature=0.5)}, "sampling.temperature: the run has 1.0, now 0.5"),
        ({}, {"params": SamplingParams(stop=("a",))}, "sampling.stop: the run has [], now ['a']"),
    ],
)
def test_whatever_changes_the_draws_is_compared(tmp_path, before, after, told):
    draw(tmp_path / "run", **before)
    written = contents(tmp_path / "run")
    with pytest.raises(StoreError) as error:
        draw(tmp_path / "run", samples=3, **after)
    assert told in str(error.value) and "must not be mixed" in str(error.value)
    assert "Nothing was changed" in str(error.value) and contents(tmp_path / "run") == written
    assert draw(tmp_path / "run", samples=3, **before).num_drawn == 2


def test_versions_may_differ_and_are_recorded(tmp_path):
    draw(tmp_path / "run", engine_version="1")
    draw(tmp_path / "run", engine_version="2")
    sessions = manifest(tmp_path / "run")["sessions"]
    assert [session["versions"]["engine_version"] for session in sessions] == ["1", "2"]


@pytest.mark.parametrize("name", ["dataset", "sampling", "sessions", "num_samples", "versions"])
def test_an_identity_cannot_hide_behind_a_name_that_is_not_compared(tmp_path, name):
    with pytest.raises(ValueError, match=rf"the sampler has \['{name}'\] in its identity\(\), names that the"):
        draw(tmp_path / "run", **{name: "x"})
    assert not (tmp_path / "run").exists()


def test_passwords_stay_out_of_the_run(tmp_path):
    secret = "http://user:S3CR/ET@host:8000/v1".replace("/ET", "@ET")
    draw(tmp_path / "run", base_url=secret, extra_body={"mirrors": [secret, 3]})
    assert manifest(tmp_path / "run")["base_url"] == "http://host:8000/v1"
    assert manifest(tmp_path / "run")["extra_body"] == {"mirrors": ["http://host:8000/v1", 3]}
    # Another password is the same endpoint, and an @ outside an address is left alone.
    other = "http://host:8000/v1"
    draw(tmp_path / "run", base_url=other, extra_body={"mirrors": [other, 3]})
    dataset = {"dataset": secret + "/test.jsonl", "prompt_template": "me@home: {q} http://host/a@b"}
    sample_run(tmp_path / "two", make_problems(1), KnownSampler(), 1, dataset=dataset, progress=False)
    assert manifest(tmp_path / "two")["dataset"] == {
        "dataset": "http://host:8000/v1/test.jsonl",
        "prompt_template": "me@home: {q} http://host/a@b",
    }
    for file in tmp_path.rglob("*.*"):
        assert file.is_dir() or b"S3CR" not in file.read_bytes()


def test_numpy_integers_are_integers(tmp_path):
    params = SamplingParams(seed=np.int64(3), top_k=np.int32(4))
    for samples in (np.int64(2), 2, np.int32(3)):
        sample_run(
            tmp_path / "run", make_problems(2), KnownSampler(), samples, params, chunk_size=np.int64(2), progress=False
        )
    assert manifest(tmp_path / "run")["num_samples"] == 3
    assert manifest(tmp_path / "run")["sampling"]["seed"] == 3
    for wrong in (2.0, "2", True, np.float64(2)):
        with pytest.raises(ValueError, match="`num_samples` must be an integer of at least 1, got"):
            sample_run(tmp_path / "run", make_problems(2), KnownSampler(), wrong, params)
        with pytest.raises(ValueError, match="`chunk_size` must be an integer of at least 1, got"):
            sample_run(tmp_path / "run", make_problems(2), KnownSampler(), 2, params, chunk_size=wrong)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("dataset_fingerprint", 3, "'dataset_fingerprint' should be of type str, got 3"),
        ("problems_sha256", None, "'problems_sha256' should be of type str, got None"),
        ("num_problems", "2", "'num_problems' should be of type int, got '2'"),
        ("num_samples", [2], "'num_samples' should be of type int | None, got [2]"),
        ("num_samples", True, "'num_samples' should be of type int | None, got True"),
        ("versions", "1", "'versions' should be of type dict | None, got '1'"),
        ("sessions", {}, "'sessions' should be of type list, got {}"),
        ("created", 0, "'created' should be of type str | None, got 0"),
        ("sampling", [], "'sampling' should be of type dict, got []"),
        ("sampling", {"temperature": "hot"}, " number"),
        ("sampling", {"temperature": -1}, "must be a finite number"),
        ("sampling", {"temprature": 1}, "unexpected keyword argument 'temprature'"),
    ],
)
def test_wrong_types_in_a_manifest_are_named(tmp_path, key, value, told):
    draw(tmp_path / "run")
    path = tmp_path / "run/manifest.json"
    path.write_text(json.dumps({**manifest(tmp_path / "run"), key: value}))
    before = path.read_bytes()
    for ask in (lambda: RunStore(tmp_path / "run"), lambda: draw(tmp_path / "run", samples=3)):
        with pytest.raises(StoreError) as error:
            ask()
        assert told in str(error.value) and f"{path} is damaged (" in str(error.value)
        assert "restore it, or sample into a new folder" in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("key", ["format", "dataset_fingerprint", "problems_sha256", "num_problems"])
def test_a_manifest_without_what_it_must_have(tmp_path, key):
    draw(tmp_path / "run")
    content = manifest(tmp_path / "run")
    del content[key]
    (tmp_path / "run/manifest.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match=f"manifest.json is damaged .it has no '{key}'."):
        RunStore(tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        *((text, "manifest.json is damaged .*; restore it, or sample") for text in ("", "{", "[]", "[" * 100_000)),
        ('{"format": 1}', "has format 1, but this version of dco-trl reads format 3. Use the version"),
    ],
)
def test_a_damaged_manifest_and_one_of_another_version_are_named(tmp_path, content, told):
    draw(tmp_path / "run")
    before = contents(tmp_path / "run/samples")
    (tmp_path / "run/manifest.json").write_text(content)
    with pytest.raises(StoreError, match=told):
        draw(tmp_path / "run", samples=3)
    assert contents(tmp_path / "run/samples") == before


def test_changed_or_missing_problems_are_noticed(tmp_path):
    draw(tmp_path / "run")
    draw(tmp_path / "other", problems=3)
    problems = tmp_path / "run/problems.parquet"
    problems.write_bytes((tmp_path / "other/problems.parquet").read_bytes())
    with pytest.raises(StoreError, match="problems.parquet is damaged or missing .its SHA-256 is not the one in"):
        RunStore(tmp_path / "run")
    # With a matching hash, it is still not what was sampled.
    manifest = tmp_path / "run/manifest.json"
    whole = manifest.read_text()
    forged = json.loads(whole) | {"problems_sha256": hashlib.sha256(problems.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(forged))
    with pytest.raises(StoreError, match="does not have the fingerprint in manifest.json: one of the two was"):
        RunStore(tmp_path / "run")
    manifest.write_text(whole)
    problems.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="problems.parquet is damaged or missing .*; restore it, or sample"):
        RunStore(tmp_path / "run")
    problems.unlink()
    with pytest.raises(StoreError, match="problems.parquet is damaged or missing .*No such file.*; restore it"):
        RunStore(tmp_path / "run")
    with pytest.raises(StoreError, match="problems.parquet is damaged or missing .*No such file.*; restore it"):
        draw(tmp_path / "run", samples=3)
    assert manifest.read_text() == whole and not problems.exists()
