"""Sampling along a schedule: the store keeps each sample's arm, and a run resumes or refuses as with one arm."""

import json
from dataclasses import replace

import numpy as np
import pytest
from known_sampler import ArmSampler, make_problems, make_schedule, rows, sampler_params

from dco_trl.runs import RunStore, StoreError, evaluate, load_results, sample_run
from dco_trl.runs.arm import Arm
from dco_trl.runs.arms import read_arms
from dco_trl.runs.schedule_file import ArmSchedule, follow, write_schedule
from dco_trl.sampling import SamplingParams
from dco_trl.sampling.fingerprint import describe
from dco_trl.statistics import AttemptOrder, plan_attempts

PROBLEMS = make_problems(9)


@pytest.fixture
def schedule(tmp_path):
    return make_schedule(tmp_path)


def run(folder, num_samples, schedule, **arguments):
    arguments = {"progress": False, "sampler": ArmSampler(), **arguments}
    return sample_run(folder, PROBLEMS, arguments.pop("sampler"), num_samples, schedule=schedule, **arguments)


def rows_of(folder):
    found = {(row["problem_id"], row["sample_index"]): (row["text"], row["arm"]) for row in rows(folder)}
    assert len(found) == len(rows(folder))
    return found


def expected_rows(schedule, num_samples, seed=0):
    """Every attempt drawn alone, with its arm derived from the counts."""
    arm_of = np.diff(schedule.schedule.counts(np.arange(num_samples + 1)), axis=0).argmax(axis=1)
    seed = sampler_params(ArmSampler(), SamplingParams(seed=seed), schedule).seed
    return {
        (f"p{s}", i): (ArmSampler().draw_arm(arm, s, i, seed).text, arm.name)
        for s in range(len(PROBLEMS))
        for i, arm in enumerate(schedule.arms[j] for j in arm_of)
    }


def test_each_sample_is_of_its_arm_and_the_store_says_which(tmp_path, schedule):
    write_schedule(tmp_path / "schedule.yaml", schedule.schedule, schedule.arms)
    summary = run(tmp_path / "run", 32, tmp_path / "schedule.yaml", params=SamplingParams(seed=3))
    assert (summary.num_drawn, summary.num_present) == (288, 288)
    found = rows_of(tmp_path / "run")
    assert found == expected_rows(schedule, 32, seed=3)
    assert len({arm for _, arm in found.values()}) == 3


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
@pytest.mark.slow
def test_stopped_and_extended_it_goes_on_with_the_same_draws(tmp_path, schedule, chunk_size):
    class Stops(ArmSampler):
        def sample(self, requests, params):
            if len(list((tmp_path / "run").rglob("part-*"))) == 3:
                raise KeyboardInterrupt
            return super().sample(requests, params)

    if chunk_size < 100:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", 10, schedule, sampler=Stops(), chunk_size=chunk_size)
        assert len(rows_of(tmp_path / "run")) == 3 * chunk_size
    run(tmp_path / "run", 10, schedule, chunk_size=chunk_size)
    assert rows_of(tmp_path / "run") == expected_rows(schedule, 10)
    run(tmp_path / "run", 20, schedule, chunk_size=chunk_size)
    assert rows_of(tmp_path / "run") == expected_rows(schedule, 20)


def test_more_attempts_than_planned_go_to_the_last_arm_with_a_note(tmp_path, schedule, capsys):
    run(tmp_path / "run", 40, schedule, progress=True)
    last = schedule.arms[schedule.schedule.arm[-1]].name
    told = f"the schedule plans 32 attempts: beyond them its last arm, {last}, goes on"
    assert told in capsys.readouterr().err
    found = rows_of(tmp_path / "run")
    assert found == expected_rows(schedule, 40)
    assert {found[f"p{s}", i][1] for s in range(9) for i in range(32, 40)} == {last}
    run(tmp_path / "run", 40, schedule, progress=True)  # nothing is drawn, and nothing told
    assert "beyond them" in capsys.readouterr().err


def changed(schedule, **changes):
    return ArmSchedule(replace(schedule.schedule, **changes), schedule.arms)


def test_another_schedule_is_refused(tmp_path, schedule):
    run(tmp_path / "run", 10, schedule)
    before = rows_of(tmp_path / "run")
    other = changed(schedule, arm=schedule.schedule.arm[::-1], attempts=schedule.schedule.attempts[::-1])
    with pytest.raises(StoreError, match=r"schedule.blocks: the run has \[\[\d, .*, now \[\["):
        run(tmp_path / "run", 12, other)
    warmer = ArmSchedule(schedule.schedule, (*schedule.arms[:2], replace(schedule.arms[2], temperature=2.5)))
    with pytest.raises(StoreError, match=r"schedule.arms.2.temperature: the run has 2.0, now 2.5"):
        run(tmp_path / "run", 12, warmer)
    with pytest.raises(StoreError, match=r"schedule.arms.0.adapter: the run has '.*even', now '\(nothing\)'"):
        run(tmp_path / "run", 12, None)
    (tmp_path / "even" / "adapter_config.json").write_text('{"r": 2}')
    with pytest.raises(StoreError, match=r"schedule.arms.0.adapter_fingerprint: the run has"):
        run(tmp_path / "run", 12, schedule)
    assert rows_of(tmp_path / "run") == before


def test_a_run_of_one_arm_takes_no_schedule(tmp_path, schedule):
    run(tmp_path / "run", 4, None)
    store = RunStore(tmp_path / "run")
    assert "arm" not in store.read_samples(store.sample_parts()[0]).column_names
    with pytest.raises(StoreError, match=r"schedule.arms.1.adapter: the run has '\(nothing\)', now '.*odd'"):
        run(tmp_path / "run", 8, schedule)


def test_a_long_schedule_is_told_in_few_words(tmp_path, schedule):
    blocks = np.tile([0, 1], 300)
    ks = np.array([600])
    long = ArmSchedule(AttemptOrder(blocks, np.ones(600, np.int64), 3, ks, ks / 600, ks / 600), schedule.arms)
    run(tmp_path / "run", 2, long)
    with pytest.raises(StoreError, match=r"schedule.blocks: the run has .{200}…, now") as caught:
        run(tmp_path / "run", 2, schedule)
    assert len(str(caught.value)) < 1500


def test_what_cannot_follow_a_schedule_is_refused_before_a_folder_is_made(tmp_path, schedule):
    other = ArmSampler(adapter="mine")
    is_for = r"arm '.*even' of the schedule is for model 'known' \(no fingerprint\), and the sampler has 'other'"
    for kind, told, arguments in (
        (StoreError, is_for, {"sampler": ArmSampler(model="other")}),
        (ValueError, "`adapter` mine cannot be combined with a schedule: its arms have their own", {"sampler": other}),
        (ValueError, "temperature=0.5 cannot be combined", {"params": SamplingParams(temperature=0.5)}),
    ):
        with pytest.raises(kind, match=told):
            run(tmp_path / "run", 4, schedule, **arguments)
    with pytest.raises(StoreError, match="absent.yaml holds no schedule"):
        run(tmp_path / "run", 4, tmp_path / "absent.yaml")
    (tmp_path / "odd" / "adapter_config.json").unlink()
    with pytest.raises(StoreError, match="the adapter of arm '.*odd' is gone: .* has no adapter_config.json"):
        run(tmp_path / "run", 4, schedule)
    assert not (tmp_path / "run").exists()


def test_models_and_adapters_that_moved_draw_what_they_drew(tmp_path):
    def seed_in(place, weights="a", schedule=None, adapter=""):
        folder = tmp_path / place
        folder.mkdir()
        (folder / "model.safetensors").write_text(weights)
        adapter = str(make_adapter(folder)) if adapter else ""
        sampler = ArmSampler(**describe("model", str(folder)), **describe("adapter", adapter))
        return sampler_params(sampler, SamplingParams(), schedule and schedule(folder)).seed

    def make_adapter(folder):
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
        return folder / "adapter"

    def along(folder):
        arms = (Arm(str(folder)), Arm(str(folder), str(make_adapter(folder))))
        return ArmSchedule(plan_attempts(4, log_p=np.log([[0.5, 0.1], [0.1, 0.5]])), arms)

    assert seed_in("one") == seed_in("two") != seed_in("other", weights="b")
    adapted = seed_in("three", adapter="yes")
    assert adapted == seed_in("four", adapter="yes") != seed_in("five")
    assert seed_in("six", schedule=along) == seed_in("seven", schedule=along) not in (adapted, seed_in("eight"))


def test_a_schedule_is_checked_once(tmp_path, schedule):
    """A schedule that was checked before the model is loaded is not checked again."""
    followed = follow(schedule, {"model": "known"}, SamplingParams())
    (tmp_path / "odd" / "adapter_config.json").unlink()
    assert follow(followed, {"model": "other"}, SamplingParams(temperature=2)) is followed
    assert run(tmp_path / "run", 4, followed).num_drawn == 36


def test_a_server_is_told_how_to_serve_the_model(tmp_path, schedule):
    with pytest.raises(StoreError, match=r"serve it under that name too \(--served-model-name known\)"):
        run(tmp_path / "run", 4, schedule, sampler=ArmSampler(sampler="server", model="served"))
    # A server may have the adapters on its own disk, or know them by name.
    (tmp_path / "odd" / "adapter_config.json").unlink()
    assert run(tmp_path / "run", 4, schedule, sampler=ArmSampler(sampler="server")).num_drawn == 36


def test_results_have_the_counts_of_each_arm(tmp_path, schedule):
    result = evaluate(tmp_path / "run", PROBLEMS, ArmSampler(), "exact", 32, schedule=schedule, progress=False)
    assert result.schedule.arms == schedule.arms
    counts = schedule.schedule.counts(np.arange(33))
    assert (result.schedule.schedule.counts(np.arange(33)) == counts).all()
    rows = expected_rows(schedule, 32)
    for s, problem in enumerate(result.problems):
        for arm, (n, c) in zip(schedule.arms, problem.by_arm, strict=True):
            texts = [rows[f"p{s}", i][0] for i in range(32) if rows[f"p{s}", i][1] == arm.name]
            assert (n, c) == (len(texts), sum(text.endswith(" 0.") for text in texts))
        assert [n for n, _ in problem.by_arm] == counts[-1].tolist()
        assert problem.num_correct == sum(c for _, c in problem.by_arm)


def test_a_graded_run_along_a_schedule_is_read_as_its_arms(tmp_path, schedule):
    few = evaluate(tmp_path / "run", PROBLEMS, ArmSampler(), "exact", 2, schedule=schedule, progress=False)
    measured = read_arms([tmp_path / "run"])
    counts = schedule.schedule.counts(2)
    assert measured.arms == tuple(arm for arm, n in zip(schedule.arms, counts, strict=True) if n)
    assert len(measured.arms) < 3  # an arm without a sample was not measured
    assert measured.num_sampled.tolist() == [[n] * 9 for n in counts if n]
    assert measured.num_correct.sum() == sum(problem.num_correct for problem in few.problems)


def test_a_damaged_schedule_is_reported(tmp_path, schedule):
    evaluate(tmp_path / "run", PROBLEMS, ArmSampler(), "exact", 4, schedule=schedule, progress=False)
    file = tmp_path / "run" / "manifest.json"
    whole = json.loads(file.read_text())
    for key, value in (("blocks", [[7, 1]]), ("arms", [{"adapter": "a"}]), ("arms", 3)):
        file.write_text(json.dumps({**whole, "schedule": {**whole["schedule"], key: value}}))
        with pytest.raises(StoreError, match="the schedule in .*manifest.json is damaged: .*Restore the file"):
            load_results(tmp_path / "run")
    file.write_text(json.dumps({**whole, "schedule": {**whole["schedule"], "arms": whole["schedule"]["arms"][::-1]}}))
    assert load_results(tmp_path / "run").problems
    whole["schedule"]["arms"] = [{**arm, "temperature": 3.0} for arm in whole["schedule"]["arms"]]
    file.write_text(json.dumps(whole))
    with pytest.raises(StoreError, match="has samples of arm .*, which is not in the schedule of manifest.json"):
        load_results(tmp_path / "run")
