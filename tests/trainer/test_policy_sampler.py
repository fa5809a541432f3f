"""What the CoT trainer samples with: its options, its prompts, and what it leaves behind."""

import json
from types import SimpleNamespace

import psutil
import pytest
from cot import make_cot_trainer, record_samples, settings, trained
from peft import LoraConfig
from tiny_models import make_model, make_tokenizer, save_checkpoint

from dco_trl import CoTDCOConfig
from dco_trl.sampling import EndpointError
from dco_trl.trainer.policy_sampler import PolicySampler
from dco_trl.trainer.sharded_weights import Replica

LORA = {"peft_config": LoraConfig(r=4, target_modules=["q_proj"])}
NOBODY = "http://127.0.0.1:9/v1"  # no endpoint

# ------------------------------------------------------------------------- prompts

# A system line for tools, and a hint at the end of the user's turn.
TEMPLATE = (
    "{% if tools %}{{ tools[0].function.name }} {% endif %}"
    "{% for m in messages %}{{ m.content }}{{ ' ' + hint + ':' if m.role == 'user' else eos_token }}{% endfor %}"
)


@pytest.mark.slow
def test_rationales_are_sampled_from_the_prompt_that_is_trained_on(monkeypatch):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tools = json.dumps([{"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}])
    prompt, completion = [{"role": "user", "content": "1+2"}], [{"role": "assistant", "content": "3"}]
    common = {"prompt": prompt, "completion": completion, "answer": "3"}
    rows = [
        {**common, "chat_template_kwargs": {"hint": hint}, "tools": given}
        for hint, given in (("short", None), ("long", tools), ("short", None))
    ]
    graded = []

    def grader(prompts, completions, answer, **columns):
        graded.append((prompts[0], completions[0][0]["role"], columns["tools"][0]))
        return [1.0] * len(completions)

    recorded = record_samples(monkeypatch)
    trainer = trained(rows, grader, max_steps=1, processing_class=tokenizer)
    # The same messages rendered otherwise are another problem; rendered alike, the same.
    requested = {request.stream: request.prompt for request, _ in recorded}
    assert {row: tokenizer.decode(ids) for row, ids in requested.items()} == {0: "1+2 short:", 1: "add 1+2 long:"}
    prepared = {row["dco_row"]: row for row in trainer.train_dataset}
    for row, ids in requested.items():
        assert prepared[row]["input_ids"][: len(ids)] == ids
        assert prepared[row]["labels"][: len(ids) + 1] == [-100] * len(ids) + [prepared[row]["input_ids"][len(ids)]]
    # Graders get what the user wrote.
    assert graded[0] == (prompt, "assistant", None)


# ------------------------------------------------------------------------- options


def options(sampler="transformers", **kwargs):
    return {"sampler": sampler, "sampler_kwargs": kwargs}


def server(**kwargs):
    return options("server", base_url=NOBODY, **kwargs)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (options(batchsize=4), "`sampler='transformers'` does not know the option 'batchsize'. Did you mean 'batch"),
        (options(batch_size="4"), "`batch_size` must be an integer of at least 1, got '4'"),
        (server(retries=1), "does not know the option 'retries'. Did you mean 'max_retries'"),
        (server(adapter="a", progress=True), "sets adapter, progress, which training decides. Leave it out."),
        (options("vllm", model="another", max_model_len=64), "`sampler_kwargs` sets model, which training decides"),
        ({"max_rationale_tokens": 254}, "4 tokens, which with `max_rationale_tokens=254` are more than the 256 of"),
        ({**server(), **LORA}, "base model has no name or folder.*pass the folder as `model`"),
        (server(), "The model has no name or folder that a sampler could load it from: it was made in memory"),
    ],
)
def test_refused_when_the_trainer_is_made(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_cot_trainer(**overrides)


@pytest.mark.parametrize(
    ("distributed_type", "options", "message"),
    [
        ("FSDP", {}, "Rationales cannot be sampled while FSDP 1 shards the model. Use FSDP 2 .`fsdp_versi"),
        ("MEGATRON_LM", server(), "cannot be sampled while Megatron-LM shards the model. .* DeepSpeed ZeRO"),
        ("MULTI_GPU", options("vllm"), "shares one process's device, and there are 2 processes.* Start one"),
    ],
)
def test_ways_of_training_that_a_sampler_cannot_follow(distributed_type, options, message):
    accelerator = SimpleNamespace(distributed_type=distributed_type, num_processes=2, is_fsdp2=False)
    with pytest.raises(ValueError, match=message):
        PolicySampler(accelerator, make_model(), make_tokenizer(), CoTDCOConfig(**settings(**options)), 4)


def test_a_quantised_model_is_not_copied_to_every_process():
    model = make_model()
    model.is_quantized = True
    with pytest.raises(ValueError, match="A quantised model that is sharded cannot be sampled .* Use `sampler='serve"):
        Replica(model, accelerator=None)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
def test_options_that_vllm_does_not_know_are_refused(tmp_path):
    pytest.importorskip("vllm")
    model = str(save_checkpoint(tmp_path))
    make_cot_trainer(model=model, **options("vllm", max_model_len=64, enforce_eager=True))
    with pytest.raises(ValueError, match="vllm.LLM does not know the option 'max_len'. Did you mean 'max_"):
        make_cot_trainer(model=model, **options("vllm", max_len=64))
    with pytest.raises(ValueError, match="has 4 tokens, which with `max_rationale_tokens=8` are more than the 10"):
        make_cot_trainer(model=model, **options("vllm", max_model_len=10))


# ------------------------------------------------------------------------- what it leaves behind


@pytest.mark.slow
def test_what_was_saved_for_the_sampler_is_removed_and_nothing_else(tmp_path, monkeypatch):
    users = tmp_path / "run/sampler/notes.txt"
    users.parent.mkdir(parents=True)
    users.write_text("mine")
    before = {path.name for path in (tmp_path / "run").iterdir()}
    saved = []
    save = PolicySampler._save

    def watched(self, folder, state):
        save(self, folder, state)
        saved.append((folder, {path.name for path in folder.iterdir()}))

    monkeypatch.setattr(PolicySampler, "_save", watched)
    trainer = make_cot_trainer(
        model=str(save_checkpoint(tmp_path / "model")),
        output_dir=str(tmp_path / "run"),
        **server(max_retries=0),
        **LORA,
    )
    with pytest.raises(EndpointError, match="could not list its models"):
        trainer.train()
    [(folder, names)] = saved
    assert folder.parent == tmp_path / "run" and folder.name.startswith(".dco-sampler-")
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "tokenizer.json"} <= names
    assert {path.name for path in (tmp_path / "run").iterdir()} == before and users.read_text() == "mine"


@pytest.mark.slow
def test_the_graders_workers_end_with_training():
    trainer = make_cot_trainer(grader="math", max_steps=1)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    # Equal values that are written differently need a worker.
    [verdict] = trainer._windows._grader.grade([""], [r"\boxed{0.5}"], [r"\frac{1}{2}"], progress=False)
    workers = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert verdict.score == 1.0 and workers
    trainer.train()
    assert not workers & {child.pid for child in psutil.Process().children(recursive=True)}
