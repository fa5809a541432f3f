"""`dco-trl report` on real run folders."""

import json

import pytest

from dco_trl.cli import main
from dco_trl.runs import Problem, RunStore, grade_run


def make_run(folder, right=2, graders=("exact",)):
    with RunStore.writing(
        folder, {"model": "m"}, [Problem("a", "1 + 1 =", "2"), Problem("b", "2 + 2 =", "4")]
    ) as store:
        rows = [
            (name, i, answer if i < right else "9", 2, "stop")
            for name, answer in (("a", "2"), ("b", "4"))
            for i in range(4)
        ]
        store.write_samples(rows)
    for grader in graders:
        grade_run(folder, grader, progress=False, num_workers=1)
    return str(folder)


@pytest.mark.slow
def test_two_runs(tmp_path, capsys):
    runs = [make_run(tmp_path / "ce", 1), make_run(tmp_path / "dco", 3)]
    assert main(["report", *runs, "--output", str(tmp_path / "report"), "--k", "1", "4"]) == 0
    out = capsys.readouterr().out
    assert "pass@4" in out and "dco - ce" in out and str(tmp_path / "report" / "report.html") in out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [run["name"] for run in report["runs"]] == ["ce", "dco"]
    assert report["groups"][0]["comparisons"][0]["pass_at_k"][0]["difference"] == pytest.approx(0.5)
    assert (tmp_path / "report" / "report.html").exists()


@pytest.mark.slow
def test_folders_of_one_name_are_told_apart_by_path(tmp_path, capsys):
    runs = [make_run(tmp_path / "one" / "ce"), make_run(tmp_path / "two" / "ce")]
    assert main(["report", *runs, "--output", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [run["name"] for run in report["runs"]] == runs


def test_a_config_file_names_runs_as_a_list(tmp_path, capsys):
    config = tmp_path / "report.yaml"
    config.write_text("runs: runs/ce\n")
    with pytest.raises(SystemExit):
        main(["report", "--config", str(config)])
    assert "dco-trl report: runs must be a list of folders, got 'runs/ce'" in capsys.readouterr().err


@pytest.mark.slow
def test_config_file(tmp_path, capsys):
    config = tmp_path / "report.yaml"
    config.write_text(f"output: {tmp_path / 'out'}\nk: [1, 2]\nruns: ['{make_run(tmp_path / 'ce')}']\n")
    assert main(["report", "--config", str(config)]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["k"] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no RUN given; name at least one folder of a graded run"),
        (["{}/none"], "holds no run"),
        (["{}/ce", "--unknown", "1"], "--unknown"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_message(tmp_path, capsys, arguments, message):
    make_run(tmp_path / "ce")
    try:
        status = main(["report", *(argument.format(tmp_path) for argument in arguments)])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error and "Traceback" not in error


@pytest.mark.slow
def test_two_graders_need_a_choice(tmp_path, capsys):
    run = make_run(tmp_path / "ce", graders=("exact", "math"))
    assert main(["report", run, "--output", str(tmp_path / "report")]) == 2
    assert "--grader must be one of exact, math: " in capsys.readouterr().err
    assert main(["report", run, "--grader", "exact", "--output", str(tmp_path / "report")]) == 0
