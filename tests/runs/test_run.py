"""Sample, grade and read a run: the counts are those of the known draws."""

import functools
import importlib
import json
import shutil
import sys
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from known_sampler import KnownSampler, make_problems, read, sampler_params

from dco_trl import __version__
from dco_trl.grading import GraderError, exact_grader
from dco_trl.grading.verdict import GRADERS_VERSION
from dco_trl.runs import Problem, RunStore, StoreError, drawing, evaluate, grade_run, load_results, sample_run
from dco_trl.runs.grade import grader_source
from dco_trl.runs.results import EXAMPLES
from dco_trl.sampling import Sample, SamplingParams
from dco_trl.statistics import pass_at_k

PARAMS = SamplingParams(seed=5)


def loose_grader(completions, level, **kwargs):
    """Right if the text ends in an even digit or the problem's level is 2; no opinion about fives."""
    return [
        None if text.endswith("5.") else float(int(text[-2]) % 2 == 0 or at_level == 2)
        for text, at_level in zip(completions, level, strict=True)
    ]


def message_grader(prompts, completions, answer, **kwargs):
    assert all(prompt[0]["role"] == "user" for prompt in prompts)
    return [float(message["content"].endswith(f" {a}.")) for [message], a in zip(completions, answer, strict=True)]


@pytest.fixture
def sampled(tmp_path):
    sample_run(tmp_path / "run", make_problems(7), KnownSampler(), 40, PARAMS, chunk_size=64, progress=False)
    return tmp_path / "run"


def drawn(problems=7, samples=40):
    """The answers that the sampler gives, computed without the store."""
    sampler = KnownSampler()
    params = sampler_params(sampler, PARAMS)
    return [[sampler.draw(s, i, params).text.split()[-1][:-1] for i in range(samples)] for s in range(problems)]


@pytest.mark.parametrize("grader", ["math", "exact"])
def test_results_are_the_counts_of_what_was_drawn(sampled, grader):
    summary = grade_run(sampled, grader, progress=False)
    result = load_results(sampled)
    assert (result.name, result.grader, result.manifest["model"]) == ("run", grader, "known")
    header = json.loads((sampled / f"grades/{grader}/grader.json").read_text())
    assert header == {"grader": grader, "source": grader_source(grader)}
    expected = drawn()
    assert summary.num_correct == sum(answers.count("0") for answers in expected)
    assert summary.num_samples == summary.num_new == 280 and sum(summary.statuses.values()) == 280
    for s, (problem, answers) in enumerate(zip(result.problems, expected, strict=True)):
        assert (problem.problem_id, problem.prompt, problem.reference) == (f"p{s}", f"{s} - {s} =", "0")
        assert (problem.num_samples, problem.num_correct) == (40, answers.count("0"))
        assert problem.num_truncated == answers.count("1")
        assert {a.answer: a.count for a in problem.answers} == Counter(answers)
        assert [a.count for a in problem.answers] == sorted((a.count for a in problem.answers), reverse=True)
        assert all(a.correct == (a.answer == "0") and a.status == "graded" for a in problem.answers)
        # The first few right ones and the first few wrong ones, as they were written.
        right = [i for i, answer in enumerate(answers) if answer == "0"][:EXAMPLES]
        wrong = [i for i, answer in enumerate(answers) if answer != "0"][:EXAMPLES]
        assert [(i, correct) for i, _, correct in problem.examples] == sorted(
            [(i, True) for i in right] + [(i, False) for i in wrong]
        )
        assert all(text == f"The answer is {answers[i]}." for i, text, _ in problem.examples)


def test_grading_again_with_other_graders_needs_no_sampling(sampled):
    first = grade_run(sampled, "exact", progress=False)
    parts = {p: p.read_bytes() for p in sampled.rglob("part-*")}
    second = grade_run(sampled, loose_grader, progress=False)
    assert {p: p.read_bytes() for p in parts} == parts
    assert second.grader == "test_run:loose_grader"
    expected = drawn()
    levels = [p.columns["level"] for p in make_problems(7)]
    right = sum(
        a != "5" and (int(a) % 2 == 0 or level == 2)
        for answers, level in zip(expected, levels, strict=True)
        for a in answers
    )
    assert second.num_correct == right > first.num_correct
    assert second.statuses["unparsed"] == sum(answers.count("5") for answers in expected) > 0
    assert "unparsed" in str(second) and f"{right:,} correct" in str(second)
    with pytest.raises(StoreError, match="`grader` must be one of exact, test_run:loose_grader: .* graded by each"):
        load_results(sampled)
    assert sum(p.num_correct for p in load_results(sampled, "exact").problems) == first.num_correct
    assert sum(p.num_correct for p in load_results(sampled, second.grader).problems) == right
    with pytest.raises(StoreError, match="was not graded by 'math' yet, only by .'exact', 'test_run"):
        load_results(sampled, "math")


def test_samples_that_were_cut_off_are_counted_apart(sampled):
    # The sampler cuts off each 1.
    def has_no_opinion_of_1_and_5(completions, **kwargs):
        return [None if text.endswith((" 1.", " 5.")) else 0.0 for text in completions]

    def accepts_1_and_2(completions, **kwargs):
        return [float(text.endswith((" 1.", " 2."))) for text in completions]

    expected = drawn()
    ungraded = load_results(sampled, grade_run(sampled, has_no_opinion_of_1_and_5, progress=False).grader).problems
    assert [p.num_truncated for p in ungraded] == [answers.count("1") for answers in expected]
    assert [p.num_ungraded for p in ungraded] == [answers.count("5") for answers in expected]
    accepted = load_results(sampled, grade_run(sampled, accepts_1_and_2, progress=False).grader).problems
    assert [p.num_truncated_correct for p in accepted] == [answers.count("1") for answers in expected]
    assert [p.num_correct for p in accepted] == [answers.count("1") + answers.count("2") for answers in expected]


def test_grading_goes_on_where_it_was_stopped(sampled):
    grade_run(sampled, "exact", progress=False)
    whole = {p.name: pq.read_table(p, partitioning=None) for p in (sampled / "grades/exact").glob("part-*")}
    next((sampled / "grades/exact").glob("part-000001-*")).unlink()
    with pytest.raises(StoreError, match="64 samples are not graded by 'exact' yet.*dco-trl grade"):
        load_results(sampled)
    again = grade_run(sampled, "exact", progress=False)
    assert (again.num_new, again.num_samples) == (64, 280)
    assert {p.name: pq.read_table(p, partitioning=None) for p in (sampled / "grades/exact").glob("part-*")} == whole
    sample_run(sampled, make_problems(7), KnownSampler(), 50, PARAMS, progress=False)
    assert grade_run(sampled, "exact", progress=False).num_new == 70
    correct = [p.num_correct for p in load_results(sampled).problems]
    assert correct == [answers.count("0") for answers in drawn(samples=50)]


def test_no_cluster_is_asked_where_nothing_is_to_be_graded(sampled, monkeypatch):
    monkeypatch.setitem(sys.modules, "dco_trl.sampling.ray_pool", None)
    with pytest.raises(ValueError, match="`ray_workers` must be an integer of at least 1, got 0"):
        grade_run(sampled, "exact", ray_workers=0, progress=False)
    with pytest.raises(ImportError):
        grade_run(sampled, "exact", ray_workers=2, progress=False)
    first = grade_run(sampled, "exact", progress=False)
    again = grade_run(sampled, "exact", ray_workers=2, progress=False)
    assert (again.num_new, again.num_correct) == (0, first.num_correct)


def test_a_grader_with_arguments_bound_is_as_its_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "from functools import partial\nfrom dco_trl.grading import exact_grader\nnames = partial(exact_grader, {})"
    sources = []
    for change in ("normalize=str.casefold", "normalize=str.strip"):
        (tmp_path / "bound_grader.py").write_text(text.format(change))
        sys.modules.pop("bound_grader", None)
        importlib.invalidate_caches()
        sources.append(grader_source("bound_grader:names"))
    assert sources[0].startswith("sha256 ") and sources[0] != sources[1]
    assert sources[0].endswith(f", dco_trl {__version__}, graders {GRADERS_VERSION}")  # of what is bound
    assert grader_source(functools.partial(len)) is None
    source = grader_source("exact")
    bound = [grader_source(functools.partial(exact_grader, normalize=how)) for how in (str.strip, str.casefold)]
    assert len({*bound, source}) == 3 and bound[0].startswith(f"{source}, bound sha256 ")
    assert (
        grader_source(functools.partial(exact_grader, normalize=lambda text: text)) is None
    )  # not the same elsewhere


def test_the_source_of_a_built_in_grader_is_one_number_and_the_packages_version():
    """A hash of one file would miss a change in another file."""
    source = f"dco_trl {__version__}, graders {GRADERS_VERSION}"
    builtin = ("exact", "choice", "json", "regex", "dco_trl.grading.reasoning_gym:score")
    assert {grader_source(name) for name in builtin} == {source}
    assert grader_source("math").startswith(f"{source}, math-verify ")


@pytest.mark.slow
def test_a_changed_grader_does_not_mix_with_its_former_self(sampled, tmp_path, monkeypatch):
    module = tmp_path / "my_graders.py"
    module.write_text("def f(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert grade_run(sampled, "my_graders:f", progress=False).num_correct == 280
    assert grade_run(sampled, "my_graders:f", progress=False).num_new == 0
    module.write_text("def f(completions, **kwargs):\n    return [0.0] * len(completions)\n")
    with pytest.raises(StoreError, match="holds verdicts of grader 'my_graders:f' with source 'sha256 .*--regrade`"):
        grade_run(sampled, "my_graders:f", progress=False)
    assert sum(p.num_correct for p in load_results(sampled).problems) == 280


def test_conversational_prompts_reach_graders_as_messages(tmp_path):
    problems = [Problem("a", [{"role": "user", "content": "0 - 0?"}], "0")]
    result = evaluate(tmp_path / "run", problems, KnownSampler(), message_grader, 40, PARAMS, progress=False)
    assert result.problems[0].num_correct == drawn(1)[0].count("0") > 0
    assert result.problems[0].prompt == "[user]\n0 - 0?"


def test_evaluate_estimates_the_known_success_rates(tmp_path):
    problems = make_problems(12)
    result = evaluate(tmp_path / "run", problems, KnownSampler(), "exact", 400, progress=False)
    correct = np.array([p.num_correct for p in result.problems])
    rates = 1 / (np.arange(12) + 2)
    for k in (1, 4, 16):
        exact = 1 - (1 - rates) ** k
        # Monte Carlo: for n = 400, the estimator deviates far less than its first-order expansion.
        spread = k * (1 - rates) ** (k - 1) * np.sqrt(rates * (1 - rates) / 400)
        assert abs(pass_at_k(400, correct, k).mean() - exact.mean()) < 5 * np.sqrt((spread**2).sum()) / 12 + 1e-3


def test_what_cannot_be_read_is_said(tmp_path, sampled):
    with pytest.raises(StoreError, match="was not graded yet. Run `dco-trl grade"):
        load_results(sampled)
    with pytest.raises(StoreError, match="holds no run"):
        grade_run(tmp_path, "exact")
    with pytest.raises(GraderError, match="grader 'maths' is not known"):
        grade_run(sampled, "maths")
    with RunStore.writing(tmp_path / "empty", {"model": "m"}, make_problems(3)) as store:
        with pytest.raises(StoreError, match="has no samples to grade; `dco-trl sample` draws them"):
            grade_run(tmp_path / "empty", "exact")
        store.write_samples([("p1", 0, "0", 1, "stop")])
    grade_run(tmp_path / "empty", "exact", progress=False)
    with pytest.raises(StoreError, match=r"2 of 3 problems have no samples yet \(p0, p2\); leaving them out would"):
        load_results(tmp_path / "empty")


def test_old_verdicts_never_judge_new_samples(sampled):
    grade_run(sampled, "exact", progress=False)
    before = sum(p.num_correct for p in load_results(sampled).problems)
    # The last part is damaged, moved out as the message asks, and drawn again: the same keys, other texts.
    last = RunStore(sampled).sample_parts()[-1]
    lost = read(last)
    last.unlink()

    class Right(KnownSampler):
        def draw(self, stream, index, params):
            return Sample("The answer is 0.", None, 1, "stop")

    sample_run(sampled, make_problems(7), Right(), 40, PARAMS, progress=False)
    again = RunStore(sampled).sample_parts()[-1]
    assert [row["sample_index"] for row in read(again)] == [row["sample_index"] for row in lost]
    assert again.name.startswith("part-000004-") and last.name.startswith("part-000004-")
    with pytest.raises(StoreError, match=f"{len(lost)} samples are not graded by 'exact' yet"):
        load_results(sampled)
    assert grade_run(sampled, "exact", progress=False).num_new == len(lost)
    right = sum(row["text"] == "The answer is 0." for row in lost)
    assert sum(p.num_correct for p in load_results(sampled).problems) == before + len(lost) - right > before


def test_grades_that_do_not_belong_are_noticed(sampled):
    grade_run(sampled, "exact", progress=False)
    grades = sampled / "grades/exact"
    first, second, *_ = sorted(grades.glob("part-*"))
    whole = first.read_bytes()
    # Renamed by hand, so that it names the samples of another part.
    impostor = grades / f"{first.name[:28]}{second.name[28:]}"
    shutil.copy(second, impostor)
    with pytest.raises(StoreError, match="exact has 2 files with verdicts on part-000000-.*Move both out"):
        load_results(sampled)
    first.unlink()
    with pytest.raises(StoreError, match="part-000000-.* does not belong to .*: their keys differ. Move it out"):
        load_results(sampled)
    impostor.unlink()
    first.write_bytes(whole[:-20] + b"?" + whole[-19:])
    for ask in (load_results, lambda run: grade_run(run, "exact", progress=False)):
        with pytest.raises(StoreError, match="is damaged and was left as it is.*its samples are then graded anew"):
            ask(sampled)
    first.unlink()
    assert grade_run(sampled, "exact", progress=False).num_new == 64


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("{}", "damaged (it should have the folder's `grader` and its `source`, got {})"),
        ("[" * 100_000, "damaged (maximum recursion depth exceeded"),
        ('{"grader": "maths", "source": null}', "got {'grader': 'maths', 'source': None}"),
        ('{"grader": 3, "source": null}', "got {'grader': 3,"),
        ('{"grader": "exact", "source": 3}', "'source': 3}"),
    ],
)
def test_a_damaged_header_of_grades_is_named(sampled, header, told):
    grade_run(sampled, "exact", progress=False)
    (sampled / "grades/exact/grader.json").write_text(header)
    for ask in (load_results, lambda run: grade_run(run, "exact", progress=False)):
        with pytest.raises(StoreError) as error:
            ask(sampled)
        assert told in str(error.value) and "grader.json is" in str(error.value)
        assert "Move its folder away and grade anew" in str(error.value)


def test_verdicts_without_a_header_are_not_taken_for_those_of_today(sampled):
    grade_run(sampled, "exact", progress=False)
    (sampled / "grades/exact/grader.json").unlink()
    with pytest.raises(StoreError, match="exact has verdicts but no grader.json that names their grader: restore it"):
        grade_run(sampled, "exact", progress=False)
    with pytest.raises(StoreError, match="was not graded yet"):
        load_results(sampled)


def test_odd_texts_survive(tmp_path):
    texts = ["", "\x00", "half a \ud83d pair", "x" * 1_000_000, "\\boxed{" + "9" * 5000 + "}", "a\r\nb"]

    class Odd(KnownSampler):
        def draw(self, stream, index, params):
            return super().draw(stream, index, params).__class__(texts[index], None, 1, "stop")

    result = evaluate(tmp_path / "run", make_problems(1), Odd(), "exact", len(texts), progress=False)
    (problem,) = result.problems
    assert sum(a.count for a in problem.answers) == len(texts)
    assert max(len(a.answer) for a in problem.answers) < 300
    (part,) = RunStore(tmp_path / "run").sample_parts()
    stored = pq.read_table(part, partitioning=None).column("text").to_pylist()
    assert stored == [text.replace("\ud83d", "?") for text in texts]


def test_chunks_grow_to_five_minutes_and_stay_bounded():
    assert drawing.next_chunk_size(512, drawn=0, seconds=0) == 2_048
    assert drawing.next_chunk_size(512, drawn=2_048, seconds=1) == drawing.MAX_SEQUENCES
    assert drawing.next_chunk_size(512, drawn=2_048, seconds=2_048) == 300
    assert drawing.next_chunk_size(512, drawn=1, seconds=10_000) == 1
    assert drawing.next_chunk_size(32_768, drawn=2_048, seconds=1) == 1_024  # long completions: memory


def test_progress_is_shown_before_the_first_chunk_is_done(tmp_path, capsys):
    class Watched(KnownSampler):
        shown = ""

        def sample(self, requests, params):
            self.shown = self.shown or capsys.readouterr().err
            return super().sample(requests, params)

    sampler = Watched(seconds=0.2)
    summary = sample_run(tmp_path / "run", make_problems(2), sampler, 10, chunk_size=8)
    assert "run:   0%" in sampler.shown and "0/20 [00:00<?, ?sample/s]" in sampler.shown
    out, err = capsys.readouterr()
    assert out == "" and "8/20" in err and "20/20" in err and "tokens/s" in err
    grade_run(tmp_path / "run", "exact")
    assert "run: exact: 100%" in capsys.readouterr().err
    assert "cut off at max_tokens" in str(summary)
    again = Watched()
    sample_run(tmp_path / "run", make_problems(2), again, 12)
    assert "20 samples are there, 4 are to be drawn" in again.shown and "20/24" in again.shown
    grade_run(tmp_path / "run", "exact")
    assert "24/24" in capsys.readouterr().err
    # Nothing to do, and nothing shown.
    sample_run(tmp_path / "run", make_problems(2), again, 12)
    grade_run(tmp_path / "run", "exact")
    assert capsys.readouterr() == ("", "")


def test_a_prompt_with_a_tool_call_is_shown_with_it(tmp_path):
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    prompt = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "tool_calls": [call]}]
    sample_run(tmp_path / "run", [Problem("0", prompt, "0")], KnownSampler(), 4, PARAMS, progress=False)
    grade_run(tmp_path / "run", "math", progress=False)
    [problem] = load_results(tmp_path / "run").problems
    assert problem.prompt == '[user]\n1+1?\n\n[assistant]\n{"name": "add", "arguments": {"a": 1}}'
