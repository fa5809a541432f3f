"""The help of the training commands: right, and quick from the second time on."""

import contextlib
import io
import subprocess
import sys

import pytest

from dco_trl.cli import main, train, train_cot


def printed(call):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        call()
    return out.getvalue()


@pytest.mark.parametrize("command", ["train", "train-cot"])
def test_the_help_that_is_remembered_is_the_parsers_own(tmp_path, monkeypatch, command):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = {"train": train, "train-cot": train_cot}[command]
    made = printed(lambda: module.main(["--help"]))
    assert "--num_attempts" in made
    assert [printed(lambda: main([command, "--help"])) for _ in range(2)] == [made] * 2
    (page,) = (tmp_path / "dco-trl").iterdir()
    page.write_text("remembered\n")
    assert printed(lambda: main([command, "-h"])) == "remembered\n"
    monkeypatch.setenv("COLUMNS", "200")  # another width, another page
    wide = printed(lambda: main([command, "--help"]))
    assert wide != made and wide.split() == printed(lambda: module.main(["--help"])).split()
    assert len(list((tmp_path / "dco-trl").iterdir())) == 2


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "--num_attempts" in printed(lambda: main(["train", "--help"]))


def test_the_second_time_imports_nothing_heavy(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    assert printed(lambda: main(["train", "--help"]))
    code = (
        "import sys; import contextlib; from dco_trl.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['train', '--help'])\n"
        "assert not {'torch', 'trl', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--num_attempts" in done.stdout, done.stderr
