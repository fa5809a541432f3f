"""From checkpoints to a schedule of attempts, as a user types it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_models import make_tokenizer, save_adapter, save_checkpoint
from transformers import AutoModelForCausalLM

from dco_trl.cli import main
from dco_trl.runs import RunStore, read_problems
from dco_trl.runs.arm import Arm
from dco_trl.runs.arms import read_arms, write_arms
from dco_trl.runs.attempts import Attempts
from dco_trl.runs.schedule_file import read_schedule, write_schedule
from dco_trl.sampling import SampleRequest, SamplingParams, TransformersSampler, exact_coverage
from dco_trl.statistics import AttemptOrder, cross_fit_schedule, exact_pass_at_k

TEMPLATE = ["--dataset", "problems.jsonl", "--prompt-template", "{problem}="]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two models, two adapters of the first, and problems, in one folder."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_checkpoint("MODEL", initializer_range=0.2)
        save_checkpoint("OTHER", seed=1, initializer_range=0.2)
        for seed, name in enumerate(("runs/ce", "runs/dco")):
            save_adapter(name, seed)
            make_tokenizer().save_pretrained(name)
    rows = [{"id": f"q{i}", "problem": f"{i}+1", "answer": str(i + 1)} for i in range(8)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def exact(model, adapter, temperature):
    loaded = TransformersSampler(model, adapter=adapter)
    problems = read_problems("problems.jsonl", prompt_template="{problem}=")
    return exact_coverage(loaded.model, loaded.tokenizer, problems, temperature=temperature, progress=False).log_p


@pytest.mark.slow
def test_coverage_of_many_adapters_and_temperatures_is_that_of_each_alone(here, tmp_path, capsys):
    file = tmp_path / "arms.parquet"
    arguments = ["--adapter", "runs/ce", "runs/dco", "--temperature", "1", "1.5", "--k", "1", "64"]
    assert main(["coverage", "--model", "MODEL", *TEMPLATE, *arguments, "--output", str(file)]) == 0
    read = read_arms([file])
    assert [(arm.model, arm.adapter, arm.temperature) for arm in read.arms] == [
        ("MODEL", adapter, temperature) for adapter in ("runs/ce", "runs/dco") for temperature in (1.0, 1.5)
    ]
    assert len({arm.model_fingerprint for arm in read.arms} - {""}) == 1
    assert read.problem_ids == tuple(f"q{i}" for i in range(8))
    for arm, log_p in zip(read.arms, read.log_p, strict=True):
        np.testing.assert_allclose(log_p, exact("MODEL", arm.adapter, arm.temperature), rtol=1e-5)
    out = capsys.readouterr().out
    assert "runs/dco, T=1.5" in out and "temperature 1 1.5" in out and "written: " in out


def test_what_was_measured_stands_in_the_file_where_a_later_adapter_fails(here, tmp_path, capsys):
    file = tmp_path / "arms.parquet"
    shutil.copytree("runs/dco", tmp_path / "broken")
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"cut off")
    arguments = ["--adapter", "runs/ce", str(tmp_path / "broken"), "--temperature", "1", "1.5"]
    assert main(["coverage", "--model", "MODEL", *TEMPLATE, *arguments, "--output", str(file)]) == 2
    assert f"adapter '{tmp_path}/broken' could not be loaded" in capsys.readouterr().err.replace("\n", "")
    assert [arm.name for arm in read_arms([file]).arms] == ["runs/ce", "runs/ce, T=1.5"]


def test_an_adapter_of_another_base_is_one_line_that_names_it(here, tmp_path, capsys):
    save_checkpoint(tmp_path / "WIDE", hidden_size=32)
    wide = ["--model", str(tmp_path / "WIDE"), *TEMPLATE, "--adapter", "runs/ce"]
    for command in (["coverage"], ["sample", "--num-samples", "1", "--output", str(tmp_path / "run")]):
        assert main([*command, *wide]) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert (
            "'runs/ce' does not fit this model: its adapter_config.json" in told and "names the model 'MODEL'" in told
        )


def test_folders_as_the_shell_completes_them(here, tmp_path, capsys):
    file = tmp_path / "arms.parquet"
    command = ["coverage", "--model", "MODEL", *TEMPLATE, "--adapter", "runs/ce/", "runs/dco/", "--output", str(file)]
    assert main(command) == 0
    assert [arm.name for arm in read_arms([file]).arms] == ["runs/ce", "runs/dco"]
    for given in ("runs/dco", "runs/dco/"):
        planned = ["schedule", str(file), "--num-attempts", "4", "--output", str(tmp_path / "schedule.yaml")]
        assert main([*planned, "--given-arms", given]) == 0


def test_coverage_of_whole_models(here, tmp_path):
    file = tmp_path / "arms.parquet"
    assert main(["coverage", "--model", "MODEL", "OTHER", *TEMPLATE, "--output", str(file)]) == 0
    read = read_arms([file])
    assert [(arm.model, arm.adapter) for arm in read.arms] == [("MODEL", ""), ("OTHER", "")]
    np.testing.assert_allclose(read.log_p[1], exact("OTHER", None, 1.0), rtol=1e-5)


def test_coverage_of_a_diverged_model_writes_nothing_and_names_it(here, tmp_path, capsys):
    broken = AutoModelForCausalLM.from_pretrained("MODEL")
    broken.lm_head.weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "BROKEN")
    make_tokenizer().save_pretrained(tmp_path / "BROKEN")
    for name in ("exact.json", "arms.parquet"):
        command = ["coverage", "--model", str(tmp_path / "BROKEN"), *TEMPLATE, "--output", str(tmp_path / name)]
        assert main(command) == 2 and not (tmp_path / name).exists()
        assert f"log p of arm '{tmp_path}/BROKEN' is NaN for 8 of 8 problems" in capsys.readouterr().err


def test_coverage_from_a_yaml_file_with_one_name(here, tmp_path):
    config = tmp_path / "coverage.yaml"
    config.write_text(
        "model: MODEL\nadapter: runs/ce\ntemperature: [1.5]\ndataset: problems.jsonl\nprompt_template: '{problem}='\n"
        f"output: {tmp_path}/exact.json\n"
    )
    assert main(["coverage", "--config", str(config)]) == 0
    numbers = json.loads((tmp_path / "exact.json").read_text())
    assert numbers["temperature"] == 1.5 and numbers["model"]["adapter"] == "runs/ce"
    found = [entry["log_p"] for entry in numbers["problems"]]
    np.testing.assert_allclose(found, exact("MODEL", "runs/ce", 1.5), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--model must be one model with any number of adapters, or several models without adapters: got 0"),
        (["--model", "MODEL", "OTHER", "--adapter", "runs/ce"], "got 2 models and 1 adapters"),
        (["--model", "MODEL", "MODEL"], "--model names an entry twice"),
        (["--model", "MODEL", "--adapter", "OTHER"], "OTHER holds no adapter (no adapter_config.json)"),
        (["--model", "MODEL", "OTHER", "--output", "exact.json"], "--output must be a .parquet file for several"),
        (["--model", "MODEL", "--temperature", "1", "2", "--run", "runs/x"], "--run goes with one model at one temp"),
        (["--model", "MODEL", "--temperature", "0"], "temperature must be above 0"),
    ],
)
def test_coverage_refuses_what_cannot_work(here, capsys, arguments, told):
    assert main(["coverage", *TEMPLATE, *arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.fixture(scope="module")
def arms_file(tmp_path_factory):
    """Six arms on 60 problems: three specialists for a third each, and three that are worse everywhere."""
    rng = np.random.default_rng(0)
    p = np.full((6, 60), 1e-3)
    for arm in range(3):
        p[arm, arm::3] = rng.uniform(0.2, 0.6, 20)
        p[arm + 3, arm::3] = 0.15
    p[:, :2] = 0
    file = tmp_path_factory.mktemp("arms") / "arms.parquet"
    arms = [Arm("MODEL", f"runs/{name}") for name in ("a", "b", "c", "worse-a", "worse-b", "worse-c")]
    with np.errstate(divide="ignore"):
        write_arms(file, arms, [f"q{i}" for i in range(60)], np.log(p))
    return file


def test_a_schedule_of_files(arms_file, tmp_path, capsys):
    output, figure = tmp_path / "new/schedule.yaml", tmp_path / "new/schedule.png"
    arguments = [str(arms_file), "--num-attempts", "64", "--output", str(output), "--figure", str(figure)]
    assert main(["schedule", *arguments]) == 0
    out = capsys.readouterr().out
    assert "6 arms measured on 60 problems" in out and "2 of 60 problems were solved by no arm" in out
    read = read_schedule(output)
    assert {arm.adapter for arm in read.arms} == {"runs/a", "runs/b", "runs/c"}
    assert read.schedule.num_attempts == 64 and read.schedule.counts(64).sum() == 64
    assert figure.read_bytes().startswith(b"\x89PNG")
    rows = {row["k"]: row for row in yaml.safe_load(output.read_text())["expected"]}
    assert list(rows) == [1, 4, 16, 64]
    measured = read_arms([arms_file])
    expected = cross_fit_schedule([16], log_p=measured.log_p, max_arms=8)
    # The folds depend only on the problems, and the schedule's prefix on nothing that follows.
    assert rows[16]["schedule"] == pytest.approx(expected.curve.estimate[0])
    assert rows[16]["best_arm_coverage"] == pytest.approx(expected.best_arm.first[0])
    assert rows[16]["difference"] > 0.4 and rows[16]["difference_low"] > 0.3
    alone = [exact_pass_at_k(row, 16).mean() for row in measured.log_p]
    assert rows[16]["best_arm"] == measured.arms[int(np.argmax(alone))].name
    assert f"{rows[16]['schedule']:.1%} [" in out and f"{rows[16]['difference']:+.1%} [" in out


def test_a_schedule_against_given_arms(arms_file, tmp_path, capsys):
    output, figure = tmp_path / "schedule.yaml", tmp_path / "schedule.svg"
    arguments = [str(arms_file), "--num-attempts", "64", "--output", str(output), "--figure", str(figure)]
    assert main(["schedule", *arguments, "--given-arms", "runs/worse-a", "runs/c/"]) == 0
    out = capsys.readouterr().out
    assert "The schedule against given arms, each alone" in out
    measured = read_arms([arms_file])
    ks = [1, 4, 16, 64]
    expected = cross_fit_schedule(ks, log_p=measured.log_p, max_arms=8, given_arms=[3, 2])
    for row, i in zip(yaml.safe_load(output.read_text())["expected"], range(4), strict=True):
        for told, arm, rival in zip(row["given_arms"], ("runs/worse-a", "runs/c"), expected.given_arms, strict=True):
            assert told["arm"] == arm and told["coverage"] == pytest.approx(rival.first[i])
            assert told["difference"] == pytest.approx(rival.difference[i])
            assert f"{rival.first[i]:.1%}, schedule {rival.difference[i]:+.1%}" in " ".join(out.split())
    assert "runs/worse-a" in figure.read_text() or figure.stat().st_size > 10_000


def test_arms_of_several_models_cannot_be_sampled_by_one_engine(tmp_path, capsys):
    write_arms(tmp_path / "a.parquet", [Arm("ONE"), Arm("TWO")], ["x", "y"], np.log([[0.5, 0.1], [0.1, 0.5]]))
    arguments = ["schedule", str(tmp_path / "a.parquet"), "--num-attempts", "8", "--output", str(tmp_path / "s.yaml")]
    assert main(arguments) == 0
    assert "The arms are of several models: `sample`, `eval` and `solve` follow schedules" in capsys.readouterr().out


def test_few_arms_and_what_they_lose(arms_file, tmp_path, capsys):
    arguments = ["schedule", str(arms_file), "--num-attempts", "64", "--output"]
    assert main([*arguments, str(tmp_path / "all.yaml")]) == 0 and "--max-arms" not in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "two.yaml"), "--max-arms", "2"]) == 0
    read, everything = read_schedule(tmp_path / "two.yaml").schedule, read_schedule(tmp_path / "all.yaml").schedule
    assert read.num_arms == 2
    loss = (everything.coverage - read.coverage).max()
    assert (
        f"2 of 3 useful arms are kept (--max-arms). All of them would cover {loss:.2%} more" in capsys.readouterr().out
    )


@pytest.mark.slow
def test_a_schedule_of_graded_runs(here, tmp_path, capsys):
    for seed, adapter in enumerate(("ce", "dco")):
        run = f"{tmp_path}/{adapter}"
        sampling = ["--num-samples", "6", "--max-tokens", "3", "--seed", str(seed), "--output", run]
        model = ["--model", "MODEL", "--adapter", f"runs/{adapter}"]
        assert main(["eval", *model, *TEMPLATE, *sampling, "--grader", "exact", "--verdict-cache", "none"]) == 0
    capsys.readouterr()
    arguments = ["--num-attempts", "32", "--output", str(tmp_path / "schedule.yaml")]
    assert main(["schedule", f"{tmp_path}/ce", f"{tmp_path}/dco", *arguments]) == 0
    out = capsys.readouterr().out
    assert "2 arms measured on 8 problems" in out
    assert "Some arm has only 6 samples of a problem: larger k are planned but not measured." in out
    assert "problems were solved by no arm" in out
    assert {arm.adapter for arm in read_schedule(tmp_path / "schedule.yaml").arms} <= {"runs/ce", "runs/dco"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["absent"], "absent holds no arms"),
        ([], "there are no arms: name files of `dco-trl coverage`"),
        (["ARMS", "--given-arms", "runs/d"], "--given-arms names 'runs/d', which is not among the arms: 'runs/a"),
        (["ARMS", "--max-arms", "0"], "--max-arms must be an integer of at least 1, got 0"),
        (["ARMS", "--num-attempts", "0"], "--num-attempts must be an integer of at least 1, got 0"),
    ],
)
def test_schedule_refuses(arms_file, tmp_path, capsys, arguments, told):
    arguments = [str(arms_file) if word == "ARMS" else word for word in arguments]
    numbers = [] if "--num-attempts" in arguments else ["--num-attempts", "4"]
    assert main(["schedule", *arguments, *numbers, "--output", str(tmp_path / "s.yaml")]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "s.yaml").exists()


@pytest.fixture
def planned(tmp_path):
    """The file of a schedule of six attempts: 1 of the first arm, 2 of the second, 1 of MODEL, 2 of the first."""
    arms = [Arm("MODEL", "runs/ce", 1.0), Arm("MODEL", "runs/dco", 1.5), Arm("MODEL")]
    order = AttemptOrder(*map(np.array, ([0, 1, 2, 0], [1, 2, 1, 2])), 3, *[np.array([6])] * 3)
    write_schedule(tmp_path / "schedule.yaml", order, arms)
    return str(tmp_path / "schedule.yaml")


def check_draws(run, planned, max_tokens, num_attempts):
    """Each sample equals the one that a sampler of its arm draws alone."""
    store, schedule = RunStore(run), read_schedule(planned)
    rows = [row for part in store.sample_parts() for row in store.read_samples(part).to_pylist()]
    drawn = {(row["problem_id"], row["sample_index"]): (row["text"], row["arm"]) for row in rows}
    assert len(drawn) == num_attempts * len(store.problems)
    seed = Attempts((), TransformersSampler("MODEL", progress=False), SamplingParams(), schedule).sampler_params.seed
    for index, number in enumerate([0, 1, 1, 2, 0, 0, 0, 0][:num_attempts]):
        arm = schedule.arms[number]
        sampler = TransformersSampler("MODEL", adapter=arm.adapter or None, progress=False)
        params = SamplingParams(temperature=arm.temperature, max_tokens=max_tokens, seed=seed)
        requests = [SampleRequest(p.prompt, 1, first_index=index, stream=i) for i, p in enumerate(store.problems)]
        for problem, [sample] in zip(store.problems, sampler.sample(requests, params), strict=True):
            assert drawn[problem.problem_id, index] == (sample.text, arm.name)


@pytest.mark.slow
def test_solve_draws_each_attempt_from_its_arm(here, tmp_path, capsys, planned):
    (tmp_path / "never.py").write_text("def accepts(completions, **columns):\n    return [0.0] * len(completions)\n")
    arguments = ["--num-attempts", "7", "--max-tokens", "4", "--output", str(tmp_path / "run")]
    grader = ["--grader", f"{tmp_path}/never.py:accepts"]
    assert main(["solve", "--model", "MODEL", *TEMPLATE, *arguments, *grader, "--schedule", planned]) == 0
    printed = capsys.readouterr()
    assert "0 of 8 problems solved with 56 attempts" in printed.out and "written: " in printed.out
    assert "the schedule plans 6 attempts: beyond them its last arm, runs/ce, goes on" in printed.err
    assert "8 open, 56 attempts" in printed.err
    check_draws(tmp_path / "run", planned, 4, 7)


@pytest.mark.slow
def test_eval_along_a_schedule_reports_it_and_goes_on(here, tmp_path, capsys, planned):
    arguments = ["--max-tokens", "3", "--output", str(tmp_path / "run"), "--schedule", planned]
    command = ["--model", "MODEL", *TEMPLATE, *arguments, "--num-samples"]
    assert main(["sample", *command, "3"]) == 0
    assert "24 samples drawn" in capsys.readouterr().out
    assert main(["eval", *command, "8", "--grader", "exact", "--verdict-cache", "none", "--k", "1", "4", "8"]) == 0
    printed = capsys.readouterr()
    assert "40 samples drawn" in printed.out and "run: each arm of the schedule, alone" in printed.out
    assert "the schedule plans 6 attempts: beyond them its last arm, runs/ce, goes on" in printed.err
    check_draws(tmp_path / "run", planned, 3, 8)
    assert main(["coverage", "--model", "MODEL", *TEMPLATE, "--run", str(tmp_path / "run")]) == 2
    assert "was sampled along a schedule of several arms, but is to be compared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--num-attempts", "0"], "--num-attempts must be an integer of at least 1, got 0"),
        (["--chunk-size", "0", "--model", "absent"], "--chunk-size must be an integer of at least 1, got 0"),
        (["--schedule", "absent.yaml"], "absent.yaml holds no schedule"),
        (["--schedule", "SCHEDULE", "--adapter", "runs/ce"], "--adapter runs/ce cannot be combined with a schedule"),
        (["--schedule", "SCHEDULE", "--temperature", "1.5"], "temperature=1.5 cannot be combined with a schedule"),
        (["--schedule", "SCHEDULE", "--model", "OTHER"], "Load that model, or plan a schedule for this one."),
        (["--answer-column", "absent", "--grader", "json:loads"], "--answer-column names 'absent', which is not"),
    ],
)
def test_solve_refuses(here, tmp_path, capsys, arguments, told):
    one = AttemptOrder(np.array([0]), np.array([4]), 1, *[np.array([4])] * 3)
    write_schedule(tmp_path / "s.yaml", one, [Arm("MODEL", model_fingerprint="0" * 16)])
    arguments = [str(tmp_path / "s.yaml") if word == "SCHEDULE" else word for word in arguments]
    command = ["solve", "--model", "MODEL", *TEMPLATE, "--num-attempts", "4", "--output", str(tmp_path / "run")]
    assert main([*command, *arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_references_are_read_where_data_sets_have_them(here, tmp_path, capsys):
    rows = {
        "choice": {"prompt": "1+1=", "answerKey": "A", "choices": {"label": ["A", "B"], "text": ["2", "3"]}},
        "code": {"prompt": "def f():", "test_list": ["assert f() == 1"]},
        "regex": {"prompt": "1+1="},
    }
    for grader, row in rows.items():
        data = tmp_path / f"{grader}.jsonl"
        data.write_text(json.dumps(row) + "\n")
        for command, number in (("eval", "--num-samples"), ("solve", "--num-attempts")):
            asked = [command, "--model", "MODEL", "--dataset", str(data), "--grader", grader, number, "2"]
            asked += ["--max-tokens", "2", "--output", str(tmp_path / f"{command}-{grader}")]
            assert main(asked) == (2 if grader == "regex" else 0)
        if grader != "regex":
            assert RunStore(tmp_path / f"solve-{grader}").problems[0].answer == row.get("answerKey", "")
    assert "--answer-column names 'answer', which is not a column of " in capsys.readouterr().err


def test_a_schedule_finds_its_adapters_from_its_own_folder(here, tmp_path, monkeypatch, capsys):
    shutil.copytree(here, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    arms = [Arm("MODEL", "runs/ce"), Arm("MODEL", "runs/dco")]
    schedule = AttemptOrder(*map(np.array, ([0, 1], [1, 1])), 2, *[np.array([2])] * 3)
    write_schedule("plans/schedule.yaml", schedule, arms)
    assert [arm["adapter"] for arm in yaml.safe_load(Path("plans/schedule.yaml").read_text())["arms"]] == [
        "../runs/ce",
        "../runs/dco",
    ]
    assert read_schedule("plans/schedule.yaml").arms == tuple(arms)
    monkeypatch.chdir(tmp_path)
    command = ["sample", "--model", "there/MODEL", "--dataset", "there/problems.jsonl", *TEMPLATE[2:], "--max-tokens"]
    assert main([*command, "3", "--schedule", "there/plans/schedule.yaml", "--num-samples", "2", "--output", "o"]) == 0
    assert "16 samples drawn" in capsys.readouterr().out
    # A name on the hub is not a folder and stays as it is.
    write_schedule("there/s.yaml", schedule, [Arm("org/base", "org/adapter"), Arm("org/base")])
    assert read_schedule("there/s.yaml").arms[0] == Arm("org/base", "org/adapter")


def test_long_names_of_arms_are_not_broken(arms_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    name = "runs/" + "a-long-name/" * 8 + "checkpoint-1"
    write_arms(tmp_path / "long.parquet", [Arm("MODEL", name)], ["0", "1"], np.log([[0.5, 0.1]]))
    command = ["schedule", str(tmp_path / "long.parquet"), "--num-attempts", "4", "--output", str(tmp_path / "s.yaml")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.count(name) >= 3 and "Brackets are 95 % intervals over problems. Schedule and best arm" in out
