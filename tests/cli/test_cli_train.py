"""`dco-trl train` as a user types it, on a tiny checkpoint and JSON lines on disk."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forks import run
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from tiny_models import save_checkpoint

from dco_trl.cli import main
from dco_trl.cli.train import DCOScriptArguments, _load, parse

ROWS = [{"prompt": f"{a}*{b}=", "completion": str(a * b), "answer": str(a * b)} for a in (3, 7, 12) for b in (2, 5, 9)]
CONFIG = """\
model_name_or_path: MODEL
dataset_name: data/train.jsonl
num_attempts: 256
use_cpu: true
bf16: false
gradient_checkpointing: false
report_to: none
disable_tqdm: true
per_device_train_batch_size: 4
max_steps: 4
learning_rate: 1.0e-2
logging_steps: 1
save_strategy: "no"
shuffle_dataset: false
"""


def write_rows(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, data and a recipe, to work in."""
    folder = tmp_path_factory.mktemp("place")
    save_checkpoint(folder / "MODEL", initializer_range=0.2)
    write_rows(folder / "data/train.jsonl", ROWS[:8])  # whole batches, for one process and for two
    write_rows(folder / "data/test.jsonl", ROWS[:5])
    write_rows(folder / "bad/digits.jsonl", [{"prompt": "3*2=", "completion": 6}])
    write_rows(folder / "bad/mixed.jsonl", [{"prompt": "3*2=", "completion": c} for c in ("6", 6)])
    (folder / "bad/broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{oops\n')
    write_rows(folder / "text/rows.jsonl", [{"text": row["prompt"] + row["completion"]} for row in ROWS])
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "no_data.yaml").write_text(CONFIG.replace("dataset_name: data/train.jsonl\n", ""))
    return folder


def train(*arguments, config="config.yaml") -> int:
    return main(["train", "--config", config, *arguments])


def log_of(output_dir, step: int) -> list[dict]:
    return json.loads((output_dir / f"checkpoint-{step}/trainer_state.json").read_text())["log_history"]


# ------------------------------------------------------------------------ it trains


EVALUATE = ["--eval_strategy", "steps", "--eval_steps", "4", "--save_strategy", "steps", "--save_steps", "2"]


@pytest.mark.slow
def test_a_run_with_lora_writes_an_adapter_that_peft_loads(here, tmp_path):
    lora = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    evaluation = ["--eval-dataset-name", "data/test.jsonl", "--eval_on_start", "true", "--coverage_at", "1", "64"]
    assert train("--output_dir", str(tmp_path), *lora, *EVALUATE, *evaluation) == 0

    card = (tmp_path / "README.md").read_text()
    assert "fine-tuned version of `MODEL`." in card and "data/train.jsonl" not in card and "| coverage@k |" in card
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    adapters = [w for name, w in model.state_dict().items() if "lora_B" in name]
    assert adapters and all(weight.any() for weight in adapters)  # B starts at zero: it has been trained

    log = log_of(tmp_path, 4)
    before, after = (row["eval_coverage@64"] for row in log if "eval_coverage@64" in row)
    assert 0 <= before <= 1 and 0 <= after <= 1 and before != after
    assert [row["step"] for row in log if "coverage_weight" in row] == [1, 2, 3, 4]


@pytest.mark.slow
def test_resuming_is_never_having_stopped(here, tmp_path):
    arguments = ["--output_dir", str(tmp_path), "--save_strategy", "steps", "--save_steps", "2"]
    assert train(*arguments) == 0
    whole = load_file(tmp_path / "model.safetensors")
    # As if it had been killed while it wrote the second checkpoint.
    (tmp_path / "checkpoint-4/trainer_state.json").unlink()
    (tmp_path / "model.safetensors").unlink()

    assert train(*arguments, "--resume_from_checkpoint", "true") == 0
    assert [row["step"] for row in log_of(tmp_path, 4) if "loss" in row] == [1, 2, 3, 4]
    resumed = load_file(tmp_path / "model.safetensors")
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    "data",
    [
        ["--dataset_name", "data"],  # a folder with train.jsonl and test.jsonl
        ["--dataset_name", "data/train.jsonl", "--eval_dataset_name", "data/test.jsonl"],
        ["--dataset_name", "data/train.jsonl", "--eval_dataset_name", "data"],
    ],
    ids=["folder", "two-files", "file-and-folder"],
)
@pytest.mark.slow
def test_local_data(here, tmp_path, data):
    arguments = ["--output_dir", str(tmp_path), *EVALUATE, "--max_steps", "1", "--eval_steps", "1"]
    assert train(*arguments, "--save_steps", "1", *data) == 0
    (row,) = [row for row in log_of(tmp_path, 1) if "eval_coverage@1" in row]
    assert row["eval_coverage@1"] <= row["eval_coverage@16"] <= row["eval_coverage@256"]


def test_literals_in_a_csv_file_are_trained_as_they_are_written(tmp_path):
    answers = ["NA", "null", "None", "007", "0.50", "2024-02-29"]
    (tmp_path / "train.csv").write_text(
        "prompt,completion\n" + "".join(f"{i}*2=,{a}\n" for i, a in enumerate(answers))
    )
    data = _load(str(tmp_path / "train.csv"), DCOScriptArguments())
    assert data["train"]["completion"][:] == answers
    streamed = _load(str(tmp_path), DCOScriptArguments(dataset_streaming=True))
    assert [row["completion"] for row in streamed["train"]] == answers


@pytest.mark.slow
def test_mixture_of_local_files(here, tmp_path):
    mixture = (
        "datasets:\n  - path: json\n    data_files: data/train.jsonl\n  - path: json\n    data_files: {train: %s}\n"
    )
    config = tmp_path / "mixture.yaml"
    config.write_text(
        CONFIG.replace("dataset_name: data/train.jsonl\n", mixture % "data/test.jsonl") + "test_split_size: 0.25\n"
    )
    arguments = [*EVALUATE, "--max_steps", "1", "--eval_steps", "1", "--save_steps", "1"]
    assert train("--output_dir", str(tmp_path), *arguments, config=str(config)) == 0
    assert any("eval_coverage@1" in row for row in log_of(tmp_path, 1))


@pytest.mark.slow
def test_one_attempt_is_trl_sft(here, tmp_path):
    """The command's final weights equal those of TRL's own script with the same file."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser
    from trl.scripts.sft import main as sft

    settings = CONFIG.replace("num_attempts: 256\n", "").replace("data/train.jsonl", "data")
    (tmp_path / "sft.yaml").write_text(settings)
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    sft(*parser.parse_args_and_config(["--config", str(tmp_path / "sft.yaml"), "--output_dir", str(tmp_path / "sft")]))
    assert train("--num_attempts", "1", "--output_dir", str(tmp_path / "dco"), "--dataset_name", "data") == 0
    expected = load_file(tmp_path / "sft/model.safetensors")
    for name, weight in load_file(tmp_path / "dco/model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


@pytest.mark.slow
def test_accelerate_launch_on_two_processes_is_one_process(here, tmp_path):
    arguments = ["--config", "config.yaml", *EVALUATE, "--eval_dataset_name", "data/test.jsonl", "--save_steps", "4"]
    two = [*arguments, "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "two")]
    # With `--cpu`, MPI would start the processes. This is the launcher for GPUs, with `use_cpu` in the file.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run([*launch, "-m", "dco_trl", "train", *two], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Model saved to") == 1

    assert main(["train", *arguments, "--output_dir", str(tmp_path / "one")]) == 0
    expected = load_file(tmp_path / "one/model.safetensors")
    for name, weight in load_file(tmp_path / "two/model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)
    logs = [[r for r in log_of(tmp_path / name, 4) if "eval_coverage@256" in r] for name in ("one", "two")]
    assert logs[1][-1]["eval_coverage@256"] == pytest.approx(logs[0][-1]["eval_coverage@256"], rel=1e-3)


# ------------------------------------------------------------------- arguments


def test_a_list_in_the_file_is_a_list(here, tmp_path):
    (tmp_path / "list.yaml").write_text(
        CONFIG + "coverage_at: [1, 64]\nlora_target_modules: all-linear\nenv: {A: 1}\n"
    )
    _, args, model_args, _ = parse(["--config", str(tmp_path / "list.yaml")])
    assert (args.coverage_at, model_args.lora_target_modules) == ([1, 64], "all-linear")


def test_command_line_wins_over_the_file_and_either_spelling_works(here):
    _, args, *_ = parse(["--config", "config.yaml", "--num-attempts", "16", "--learning_rate", "0.5"])
    assert (args.num_attempts, args.learning_rate, args.max_steps) == (16, 0.5, 4)


@pytest.mark.parametrize("command", ["train", "train-cot"])
def test_help_names_what_a_command_adds(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    head, arguments = capsys.readouterr().out.split("options:", 1)
    usage, description = head.split("\n\n", 1)
    assert usage == f"usage: dco-trl {command} [--config FILE.yaml] [ARGUMENTS]"
    for added in ("--grader GRADER", "--sampler_kwargs SAMPLER_KWARGS", "--num_rationales NUM_RATIONALES"):
        assert (added in arguments) == (command == "train-cot")
    for added in ("--num_attempts", "--loss_reduction", "--coverage_at", "--eval_dataset_name"):
        assert added in arguments and (added in description or command == "train-cot")


# ------------------------------------------------------- mistakes: one message, status 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_atempts", "16"], "unknown argument: '--num_atempts'. Did you mean '--num_attempts'?"),
        (["--quxquxqux=1"], "unknown argument: '--quxquxqux'. `dco-trl train --help` lists what there is."),
        (["--num_att", "16"], "unknown argument: '--num_att'. Did you mean '--num_attempts'?"),
        (["--num_attempts", "0"], "--num-attempts must be an integer of at least 1"),
        (["--loss_type", "dft"], "`loss_type='dft'` would be computed from log-probabilities"),
        (["--label_smoothing_factor", "0.1"], "`label_smoothing_factor=0.1` replaces TRL's loss"),
        (["--packing", "--packing_strategy", "wrapped"], "`packing_strategy='wrapped'` cuts sequences"),
        (["--dataset_name", "data/nosuch.jsonl"], "data set 'data/nosuch.jsonl': there is no such file. Check its"),
        (["--dataset_name", "nosuch/dataset"], "'nosuch/dataset' is not a file here, and the datasets lib"),
        (["--dataset_name", "bad/broken.jsonl"], "data set 'bad/broken.jsonl', line 2: not JSON: Expecting property"),
        (["--dataset_name", "bad/mixed.jsonl"], "bad/mixed.jsonl': row 1, column 'completion': 6 does not go with"),
        (["--dataset_name", "bad/digits.jsonl"], "`completion` of the train dataset holds int64, not text (row 0: "),
        (["--dataset_name", "text/rows.jsonl"], "which do not tell the answer from the prompt"),
        (["--dataset_name", "data", "--dataset_train_split", "valid"], "has no split 'valid': the only splits are"),
        (["--eval_strategy", "epoch"], "`dataset_name=data/train.jsonl` has no split 'test': the only splits are"),
        (["--eval_strategy", "epoch", "--eval_dataset_name", "nosuch.jsonl"], "data set 'nosuch.jsonl': there is no"),
        (["--model_name_or_path", "NOSUCH"], "`model_name_or_path` 'NOSUCH' could not be loaded: "),
        (["--report_to", "swanlab"], "swanlab to be installed. Run `pip install swanlab`. Or leave `report_to` out."),
        (
            ["--output_dir", "config.yaml/out"],
            "`output_dir=config.yaml/out` cannot be made or written: [Errno 20] Not a directory: 'config.yaml/out'. "
            "Name another folder.",
        ),
        (["--num_attempts", str(10**21)], "--num-attempts must be at most 2^63 - 1, about 9.2e18, got 1000000000000"),
        (["--resume_from_checkpoint", "true"], "is set, but there is no complete checkpoint in"),
        (["--resume_from_checkpoint", "nosuch"], "`resume_from_checkpoint`: there is no folder nosuch."),
    ],
)
def test_mistakes_on_the_command_line(here, tmp_path, capsys, arguments, message):
    assert train("--output_dir", str(tmp_path), *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error and error.count("dco-trl train: ") == 1


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(here, tmp_path, capsys, monkeypatch):
    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("transformers.trainer_callback.PrinterCallback.on_log", interrupt)
    assert train("--output_dir", str(tmp_path), "--save_strategy", "steps", "--save_steps", "2") == 130
    told = f"the same command with `--resume_from_checkpoint true` goes on from {tmp_path}/checkpoint-2"
    assert f"dco-trl train: interrupted at step 3; {told}\n" in capsys.readouterr().err
    assert train("--output_dir", str(tmp_path / "none")) == 130
    assert "interrupted at step 3, before a checkpoint was saved (--save_strategy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG + "num_atempts: 16\n", "unknown key in the config file: 'num_atempts'. Did you mean 'num_attempts'?"),
        (CONFIG.replace("num_attempts: 256", "num_attempts: 2.5"), "--num-attempts must be an integer"),
        (CONFIG + "max_steps: [1\n", "mixture.yaml is not valid YAML: "),
        ("just text", "mixture.yaml must contain a YAML mapping, got str."),
        ("", "mixture.yaml must contain a YAML mapping, got NoneType."),
        (CONFIG + "1: 2\n", "mixture.yaml has the key 1, which is not text. Put it in quotes."),
        (CONFIG + "no: 2\n", "mixture.yaml has the key False, which is not text."),
        (CONFIG + "coverage_at: 16\n", "mixture.yaml must be a list, got 16. Write 'coverage_at: [16]'."),
        (CONFIG + "weight_decay: [1]\n", "'weight_decay' in the config file"),
        (CONFIG + "weight_decay: {a: 1}\n", "must be a number, got {'a': 1}."),
        (CONFIG.replace("model_name_or_path: MODEL\n", ""), "missing: `model_name_or_path` (a name on the hub, or"),
        (CONFIG.replace("dataset_name: data/train.jsonl\n", ""), "missing: `dataset_name` (a name on the hub, a f"),
        (CONFIG + "datasets: [{path: json, data_file: a.jsonl}]\n", "data_file"),
    ],
)
def test_mistakes_in_the_file(here, tmp_path, capsys, config, message):
    (tmp_path / "mixture.yaml").write_text(config)
    assert train("--output_dir", str(tmp_path / "out"), config=str(tmp_path / "mixture.yaml")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_missing_config_file(here, capsys):
    assert train(config="nosuch.yaml") == 2
    assert "nosuch.yaml" in capsys.readouterr().err
    assert main(["train", "--config"]) == 2
    assert "`--config` needs a file." in capsys.readouterr().err
    assert main(["train", "--config=nosuch.yaml"]) == 2
    assert "nosuch.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "train-cot"])
def test_what_is_missing_comes_first(capsys, monkeypatch, command):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    model, data = ["--model_name_or_path", "MODEL"], ["--dataset_name", "data/train.jsonl"]
    nothing = "missing: `model_name_or_path` (a name on the hub, or a folder) and `dataset_name` (a name on the hub, "
    for arguments, message in (
        ([], nothing),
        (data, "missing: `model_name_or_path` (a name on the hub, or a folder).\n"),
        (model, "missing: `dataset_name` (a name on the hub, a folder or a file).\n"),
        ([*model, *data], "To train on the CPU, set `use_cpu=True`; for float32, `bf16=False`.\n"),
    ):
        assert main([command, *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"dco-trl {command}: ") and message in error


def test_wrong_type_on_the_command_line(here, capsys):
    with pytest.raises(SystemExit) as exit:
        train("--num_attempts", "many")
    assert exit.value.code == 2
    assert "argument --num_attempts/--num-attempts: invalid int value: 'many'" in capsys.readouterr().err


def test_debug_shows_where_an_error_comes_from(here, capsys):
    assert train("--dataset_name", "data/nosuch.jsonl", "--log_level", "debug") == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.slow
def test_mixture_wins_over_dataset_name_and_says_so(here, tmp_path):
    config = tmp_path / "both.yaml"
    config.write_text(CONFIG + "datasets: [{path: json, data_files: data/test.jsonl}]\n")
    with pytest.warns(UserWarning, match="`dataset_name` is ignored"):
        assert train("--output_dir", str(tmp_path), "--max_steps", "1", config=str(config)) == 0


@pytest.mark.slow
def test_status_reaches_the_shell(here):
    code, output = run("dco_trl", "train", "--use_cpu", "--num_atempts", "16")
    assert code == 2
    assert output.strip().splitlines()[-1].startswith("dco-trl train: unknown argument: '--num_atempts'.")


def test_a_folder_of_data_that_holds_runs_too_is_its_own_files_alone(tmp_path):
    # `datasets` takes every file below a folder for data, but a run inside it writes Parquet and JSON too.
    rows = '{"prompt": "1+1=", "completion": " 2"}\n'
    (tmp_path / "train.jsonl").write_text(rows * 2)
    (tmp_path / "test.jsonl").write_text(rows)
    checkpoint = tmp_path / "out" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    pq.write_table(pa.table({"row": [0], "log_p": [-1.0]}), checkpoint / "eval_log_p.parquet")
    data = _load(str(tmp_path), DCOScriptArguments(dataset_name=str(tmp_path)))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 2, "test": 1}
