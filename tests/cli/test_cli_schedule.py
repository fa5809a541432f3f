"""From checkpoints to a schedule of attempts, as a user types it."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import make_tokenizer, save_checkpoint
from transformers import AutoModelForCausalLM

from dco_trl.cli import main
from dco_trl.runs import read_problems
from dco_trl.runs.arms import read_arms
from dco_trl.sampling import TransformersSampler, exact_coverage

TEMPLATE = ["--dataset", "problems.jsonl", "--prompt-template", "{problem}="]


def save_adapter(folder, seed):
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("MODEL"), LoraConfig(target_modules="all-linear"))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)


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


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def exact(model, adapter, temperature):
    loaded = TransformersSampler(model, adapter=adapter)
    problems = read_problems("problems.jsonl", prompt_template="{problem}=")
    return exact_coverage(loaded.model, loaded.tokenizer, problems, temperature=temperature, progress=False).log_p


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


def test_coverage_of_whole_models(here, tmp_path):
    file = tmp_path / "arms.parquet"
    assert main(["coverage", "--model", "MODEL", "OTHER", *TEMPLATE, "--output", str(file)]) == 0
    read = read_arms([file])
    assert [(arm.model, arm.adapter) for arm in read.arms] == [("MODEL", ""), ("OTHER", "")]
    np.testing.assert_allclose(read.log_p[1], exact("OTHER", None, 1.0), rtol=1e-5)


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
        ([], "--model must be one model, with any number of adapters, or several models without: got 0 models"),
        (["--model", "MODEL", "OTHER", "--adapter", "runs/ce"], "got 2 models and 1 adapters"),
        (["--model", "MODEL", "MODEL"], "--model names an entry twice"),
        (["--model", "MODEL", "--adapter", "OTHER"], "OTHER holds no adapter (no adapter_config.json)"),
        (
            ["--model", "MODEL", "OTHER", "--output", "exact.json"],
            "--output must be a .parquet file for several models, adapters or temperatures, got exact.json",
        ),
        (
            ["--model", "MODEL", "--temperature", "1", "2", "--run", "runs/x"],
            "--run is shown beside one model at one temperature",
        ),
        (["--model", "MODEL", "--temperature", "0"], "temperature must be above 0"),
    ],
)
def test_coverage_refuses_what_cannot_work(here, capsys, arguments, told):
    assert main(["coverage", *TEMPLATE, *arguments]) == 2
    assert told in capsys.readouterr().err
