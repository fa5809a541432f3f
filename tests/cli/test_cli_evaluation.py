"""The evaluation commands as a user types them, on a tiny checkpoint on disk."""

import json
import re
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forks import run
from tiny_models import save_checkpoint

from dco_trl.cli import main
from dco_trl.cli._common import status
from dco_trl.runs import RunStore, load_results

# Short: the tiny model of characters answers nothing right, and the tests follow a command to its report.
SAMPLING = ["--prompt-template", "{problem}=", "--max-tokens", "3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and a data set, to work in."""
    folder = tmp_path_factory.mktemp("place")
    save_checkpoint(folder / "MODEL", initializer_range=0.2)
    rows = [{"id": f"q{i}", "problem": f"{i}+1", "answer": i + 1, "completion": str(i + 1)} for i in range(6)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "empty.jsonl").write_text("")
    (folder / "my_graders.py").write_text(
        "def short(completions, **kwargs):\n    return [float(len(text) < 3) for text in completions]\n"
        "def wants_text(text, **kwargs):\n    return [0.0]\n"
    )
    return folder


def dco_trl(*arguments):
    """What the command prints, in a process of its own."""
    code, output = run("dco_trl", *arguments, COLUMNS="160")
    assert code == 0, output
    return output


def sample(*arguments, output, num_samples=4, dataset="problems.jsonl"):
    return main(
        ["sample", "--model", "MODEL", "--dataset", dataset, "--output", output]
        + ["--num-samples", str(num_samples), *SAMPLING, *arguments]
    )


@pytest.mark.slow
def test_the_four_commands_word_for_word(here):
    # eval: sample, grade, report.
    printed = dco_trl(
        *["eval", "--model", "MODEL", "--dataset", "problems.jsonl", "--num-samples", "16", "--grader", "math"],
        *["--output", "runs/ce", *SAMPLING],
    )
    assert "96 samples drawn" in printed and "96 samples graded by math (96 of them now)" in printed
    assert "pass@16" in printed and "96/96" in printed
    report = json.loads((here / "runs/ce/report/report.json").read_text())
    estimates = {entry["k"]: entry["estimate"] for entry in report["runs"][0]["pass_at_k"]}
    problems = load_results(here / "runs/ce").problems
    assert estimates[1] == pytest.approx(sum(p.num_correct for p in problems) / 96)
    assert "<html" in (here / "runs/ce/report/report.html").read_text()

    # sample: another run, cut in chunks, and later more of it.
    for number in (8, 16):
        printed = dco_trl(
            *["sample", "--model", "MODEL", "--dataset", "problems.jsonl", "--num_samples", str(number)],
            *["--chunk-size", "20", "--temperature", "0.7", "--output", "runs/dco", *SAMPLING],
        )
        assert "48 samples drawn" in printed and f"{6 * number} in the run" in printed
    assert "48 samples are there, 48 are to be drawn" in printed
    keys = [
        (row["problem_id"], row["sample_index"])
        for part in (here / "runs/dco/samples").iterdir()
        for row in pq.read_table(part, partitioning=None).to_pylist()
    ]
    assert sorted(keys) == sorted((f"q{i}", j) for i in range(6) for j in range(16))

    # grade: once, again, and with your own grader.
    for grader, told in [
        ("math", "96 samples graded by math (96 of them now)"),
        ("math", "96 samples graded by math (0 of them now)"),
        ("my_graders:short", "96 samples graded by my_graders:short (96 of them now)"),
    ]:
        printed = dco_trl("grade", "runs/dco", "--grader", grader)
        assert told in printed

    # report: both runs.
    dco_trl("report", "runs/ce", "runs/dco", "--output", "report/", "--grader", "math")
    report = json.loads((here / "report/report.json").read_text())
    assert [run["name"] for run in report["runs"]] == ["ce", "dco"]

    # coverage: exact, beside the sampled run.
    printed = dco_trl(
        *["coverage", "--model", "MODEL", "--dataset", "problems.jsonl", "--prompt-template", "{problem}="],
        *["--k", "1", "16", "4096", "--run", "runs/ce", "--output", "exact.json"],
    )
    numbers = json.loads((here / "exact.json").read_text())
    assert [entry["k"] for entry in numbers["pass_at_k"]] == [1, 16, 4096]
    assert numbers["answer_column"] == "completion" and len(numbers["problems"]) == 6
    shown = re.search(r"4,096 │ +([0-9.]+)%", printed)
    assert shown and float(shown[1]) == pytest.approx(100 * numbers["pass_at_k"][2]["exact"], abs=0.006)
    assert "counts the reference's exact string only" in printed
    assert "sampled, grader math" in printed and "larger k are not estimated" in printed


def test_a_yaml_file_and_the_command_line_are_the_same(here, tmp_path, capsys):
    config = tmp_path / "sample.yaml"
    config.write_text(
        "model: MODEL\ndataset: problems.jsonl\nprompt_template: '{problem}='\nmax_tokens: 3\ndtype: float32\n"
        f"num_samples: 2\noutput: {tmp_path}/yaml\nsampler_kwargs: {{batch_size: 4}}\n"
    )
    assert main(["sample", f"--config={config}"]) == 0
    flags = ["--dtype", "float32", "--sampler-kwargs", '{"batch_size": 4}']
    assert sample(*flags, output=str(tmp_path / "flags"), num_samples=2) == 0
    parts = [
        [(part.name, part.read_bytes()) for part in (tmp_path / name / "samples").iterdir()]
        for name in ("yaml", "flags")
    ]
    assert parts[0] == parts[1] and len(parts[0]) == 1
    assert "12 samples drawn" in capsys.readouterr().out


def test_line_breaks_in_a_template_and_a_stop(here, tmp_path):
    arguments = ["--prompt-template", r"{problem}\n", "--num-problems", "1", "--stop", r"\n", "7"]
    assert sample(*arguments, output=str(tmp_path / "run")) == 0
    assert pq.read_table(tmp_path / "run/problems.parquet")["prompt"].to_pylist() == ["0+1\n"]
    assert json.loads((tmp_path / "run/manifest.json").read_text())["sampling"]["stop"] == ["\n", "7"]


def test_coverage_counts_the_reference_only(here, capsys):
    command = ["coverage", "--model", "MODEL", "--dataset", "problems.jsonl", "--prompt-template", "{problem}="]
    assert main([*command, "--answer-column", "answer", "--completion-template", " {answer}", "--k", "10"]) == 0
    out = capsys.readouterr().out
    assert "reference from column 'answer'" in out and "is a lower" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--num-samples", "0"], "--num-samples must be an integer of at least 1, got 0"),
        (["--chunk-size", "-1"], "--chunk-size must be an integer of at least 1, got -1"),
        (["--num-problems", "0"], "--num-problems must be an integer of at least 1, got 0"),
        (["--num-problems", "9"], "--num-problems is 9, and problems.jsonl has 6 rows. Ask for fewer"),
        (["--temperature", "-1"], "temperature=-1.0 must be a finite number"),
        (["--dataset", "absent.jsonl"], "data set 'absent.jsonl': there is no such file"),
        (["--dataset", "empty.jsonl"], "empty.jsonl is empty: there is nothing to sample"),
        (["--answer-column", "target"], "--answer-column names 'target', which is not a column of problems.jsonl"),
        (["--id-column", "target"], "--id-column does not name the rows of problems.jsonl: there is no column"),
        (["--prompt-template", "{question}"], "--prompt-template names ['question']"),
        (["--prompt-template", "{problem!x}"], "--prompt-template '{problem!x}' cannot format the columns of"),
        (
            ["--adapter", "absent"],
            "adapter 'absent' could not be loaded: Can't find 'adapter_config.json'",
        ),
        (
            ["--dtype", "int3"],
            "--dtype cannot be used: LlamaForCausalLM cannot be instantiated under",
        ),
        (["--dtype", "floaty"], "'floaty'. Use auto, float32, bfloat16 or float16."),
        (["--sampler-kwargs", "{oops"], "--sampler-kwargs must be a JSON object such as '{\"max_model_len\": 2048}'"),
        (["--sampler-kwargs", "[1]"], "--sampler-kwargs must be a JSON object in braces, got [1]"),
        (["--model", "no/such-model"], "model 'no/such-model' could not be loaded: "),
        (["--sampler", "server"], "--base-url is missing: the sampler 'server' needs the address of the end"),
        (["--sampler", "server", "--dtype", "float32"], "--dtype 'float32' cannot be chosen with --sampler server"),
        (["--base-url", "http://127.0.0.1:9"], "--base-url 'http://127.0.0.1:9' has no meaning for the sampler"),
        (["--output", "problems.jsonl"], "the folder problems.jsonl cannot be made or locked: File exists"),
        (["--output", "."], "holds other files"),
    ],
)
def test_mistakes_are_one_message_and_status_2(here, tmp_path, capsys, arguments, told):
    before = sorted(here.iterdir())
    assert sample(*arguments, output=str(tmp_path / "run")) == 2
    err = capsys.readouterr().err
    assert f"dco-trl sample: {err.split('dco-trl sample: ')[-1]}" in err and told in err
    assert "Traceback" not in err
    assert sorted(here.iterdir()) == before
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["sample", "--model", "m"], "the following arguments are required: --dataset, --output, --num_samples"),
        (["sample", "--modle", "m"], "dco-trl sample: unknown argument: '--modle'. Did you mean '--model'?"),
        (["eval", "--num-smaples=3"], "unknown argument: '--num-smaples'. Did you mean '--num-samples'?"),
        (["report", "run", "--quxquxqux"], "'--quxquxqux'. `dco-trl report --help` lists what there is."),
        (["grade"], "the following arguments are required: RUN"),
        (["grade", "run", "--grade", "x", "--oops", "1"], "unknown argument: '--grade'. Did you mean '--grader'?"),
        (["sample", "--sampler", "vlm"], "invalid choice: 'vlm'"),
        (["sample", "--config", "absent.yaml"], "No such file or directory: 'absent.yaml'"),
    ],
)
def test_wrong_arguments(capsys, argv, told):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("num_samples: many", "argument --num_samples/--num-samples: invalid int value: 'many'"),
        ("num_samples: 1.5", "--num-samples must be of type int, got 1.5"),
        ("num_samples: true", "--num-samples must be of type int, got True"),
        ("num_samples: [1]", "'num_samples' in the config file"),
        ("stop: '7'", "--stop must be of type list[str] | None, got '7'"),
        ("stop: [7]", "--stop must be of type list[str] | None, got [7]"),
        ("temperature: [1]", "c.yaml must be a number, got [1]"),
        ("sampler: vlm", "--sampler must be of type Literal['transformers', 'vllm', 'server'], got 'vlm'"),
        ("sampler_kwargs: 3", "--sampler-kwargs must be of type dict[str, Any] | str | None, got 3"),
        ("chat: 1", "--chat must be of type bool, got 1"),
        ("prompt_template: 5", "--prompt-template must be of type str | None, got 5"),
        ("3: 4", "c.yaml has the key 3, which is not text. Put it in quotes"),
        ("[1, 2]: 4", "c.yaml is not valid YAML: while constructing a mapping"),
        ("stop: [", "c.yaml is not valid YAML: while parsing a flow"),
        ("stop: !!python/name:os.system", "c.yaml is not valid YAML: could not determine a constructor for the tag"),
        ("stop: " + "[" * 2000, "c.yaml is not valid YAML: maximum recursion depth exceeded"),
        ("stop: \ud800", "c.yaml is not valid YAML: 'utf-8' codec"),
        ("stop: 2026-13-01", "c.yaml is not valid YAML: month must be in 1..12"),
        ("env: 3", "`env` field should be a dict in the YAML file"),
        ("env: {3: 4}", "c.yaml has 3: 4, which cannot be an environment variable. Write text such as 'env: {"),
        ("env: {a=b: c}", "has 'a=b': 'c', which cannot be an environment variable"),
        ('env: {a: "\\0"}', "has 'a': '\\x00', which cannot be an environment variable"),
        ("num_sample: 3", "Unknown arguments from config file: ['--num_sample', '3']"),
    ],
)
@pytest.mark.slow
def test_what_a_yaml_file_can_get_wrong(here, tmp_path, capsys, line, told):
    config = tmp_path / "c.yaml"
    text = f"model: MODEL\ndataset: problems.jsonl\nnum_samples: 1\noutput: {tmp_path}/run\n{line}\n"
    if line.startswith("num_samples:"):
        text = text.replace("num_samples: 1\n", "", 1)
    config.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(SystemExit) as stopped:
        main(["sample", "--config", str(config)])
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and "dco-trl sample: " in err and told in err and "Traceback" not in err


def test_mistakes_of_grading_and_coverage(here, tmp_path, capsys):
    run, data = str(tmp_path / "run"), ["--model", "MODEL", "--dataset", "problems.jsonl"]
    assert sample(output=run) == 0
    for command, told in (
        (["grade", str(tmp_path / "absent")], "holds no run: it has no manifest.json"),
        (["grade", run, "--grader", "maths"], "dco-trl grade: grader 'maths' is not known"),
        (["coverage", *data, "--k", "0"], "--k holds a number of attempts below 1: [0]"),
        (
            ["coverage", *data, "--prompt-column", "problem", "--run", run],
            "was sampled on other problems (6 there, 6 here; ids and prompts must agree)",
        ),
    ):
        assert main(command) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "solve"])
@pytest.mark.parametrize(
    ("grader", "told"),
    [
        ("a:b", "importing 'a' failed"),
        ("absent.py:b", "importing 'absent.py' failed: FileNotFoundError"),
        ("my_graders.py:wants_text", "'my_graders.py:wants_text' needs the argument 'text', which it is not given"),
        ("my_graders.py:wants_text", "which are completions, prompts, answer, solution, problem, completion. Write"),
        ("code", "grader 'code' found no tests among the columns ['answer', 'completion', 'problem']"),
    ],
)
def test_a_grader_that_does_not_fit_is_found_before_the_first_sample(here, tmp_path, capsys, command, grader, told):
    number = "--num-samples" if command == "eval" else "--num-attempts"
    argv = [command, "--model", "MODEL", "--dataset", "problems.jsonl", number, "1", "--grader", grader, *SAMPLING]
    assert main([*argv, "--output", str(tmp_path / "run")]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_verifier_in_a_file_solves_and_grades_anew_when_it_has_changed(here, tmp_path, capsys):
    (tmp_path / "helper.py").write_text("SHORT = 99\n")
    file = tmp_path / "verifier.py"
    code = "from helper import SHORT\n\ndef accept(completions, **kwargs):\n    return [%s for text in completions]\n"
    file.write_text(code % "None")
    data = ["--model", "MODEL", "--dataset", "problems.jsonl", *SAMPLING, "--grader", f"{file}:accept"]
    assert main(["solve", *data, "--num-attempts", "2", "--output", str(tmp_path / "solved")]) == 0
    out = capsys.readouterr().out
    assert "0 of 6 problems solved" in out and "the verifier judged 0 of 12 completions; 12 unparsed" in out

    assert sample(output=str(tmp_path / "run"), num_samples=2) == 0
    grade = ["grade", str(tmp_path / "run"), "--grader", f"{file}:accept"]
    assert main(grade) == 0
    file.write_text(code % "float(len(text) < SHORT)")
    assert main(grade) == 2
    assert "Verdicts of the two must not be mixed: grade all samples anew with `dco-trl" in capsys.readouterr().err
    assert main([*grade, "--regrade"]) == 0 and main(grade) == 0
    out = capsys.readouterr().out
    assert "(12 of them now): 12 correct" in out and "(0 of them now): 12 correct" in out


@pytest.mark.slow
def test_conversations_are_trained_measured_and_solved_from_one_file(here, tmp_path, capsys):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    shutil.copytree("MODEL", tmp_path / "MODEL")
    (tmp_path / "MODEL/chat_template.jinja").write_text(template)
    rows = [[("user", f"{i}+1="), ("assistant", str(i + 1))] for i in range(3)]
    lines = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in rows]
    file = tmp_path / "messages.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    model = ["--model", str(tmp_path / "MODEL"), "--dataset", str(file)]
    assert main(["coverage", *model]) == 0
    assert "3 problems, reference from column 'completion'" in capsys.readouterr().out
    sampling = ["--max-tokens", "3", "--grader", "exact", "--output"]
    assert main(["eval", *model, "--num-samples", "2", *sampling, str(tmp_path / "run")]) == 0
    assert [p.answer for p in RunStore(tmp_path / "run").problems] == ["1", "2", "3"]
    assert RunStore(tmp_path / "run").problems[2].prompt == [{"role": "user", "content": "2+1="}]
    assert main(["solve", *model, "--num-attempts", "2", *sampling, str(tmp_path / "solved")]) == 0
    assert (tmp_path / "solved/answers.jsonl").read_text().count("\n") == 3
    file.write_text(json.dumps({"messages": lines[0]["messages"][:1]}) + "\n")
    assert main(["coverage", *model]) == 2
    assert "row 0, column 'messages': it must end with a message of the assistant" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sample", "eval", "estimate", "grade"])
def test_a_missing_library_is_one_message(here, tmp_path, capsys, monkeypatch, command):
    # As without an extra; tests/test_extras.py tests which one is named.
    monkeypatch.setitem(sys.modules, "dco_trl.runs", None)
    arguments = ["--model", "m", "--dataset", "problems.jsonl", "--num-samples", "1", "--output", f"{tmp_path}/r"]
    assert main([command, *(["run"] if command == "grade" else arguments)]) == 2
    assert f"dco-trl {command}: import of dco_trl.runs halted" in capsys.readouterr().err


def test_an_error_that_is_not_the_users_keeps_its_traceback(monkeypatch):
    def broken():
        Path("x").relative_to("/y")  # a ValueError of the standard library's, in its own code

    with pytest.raises(ValueError, match="is not in the subpath"):
        status("sample", broken)

    def stopped():
        raise KeyboardInterrupt

    assert status("sample", stopped) == 130


def test_the_verifier_of_the_guide_judges():
    page = Path(__file__).parents[2] / "docs/evaluating.md"
    names: dict = {}
    exec(re.search(r"```python\n(def accept.*?)```", page.read_text(), re.DOTALL)[1], names)
    completions = ["x = 3", "so 4", "none", "", [{"role": "assistant", "content": "it is -3"}]]
    assert names["accept"](completions, [[-3, 1]] * 4 + [[9, 6, 1]]) == [1.0, 0.0, None, None, 1.0]
