"""PassAtKCallback in real trainers: what it logs, what it stores, and that training does not notice it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from callback_run import PARAMS, ROWS, HalfRight, sft
from datasets import Dataset
from forks import run
from tiny_models import make_model, make_tokenizer
from training import assert_same_weights
from trl import GRPOConfig, GRPOTrainer

from dco_trl.grading import GraderError
from dco_trl.runs import RunStore, load_results, read_problems
from dco_trl.statistics import pass_at_k
from dco_trl.trainer.callbacks import PassAtKCallback, _new_folder


def logged(trainer, key):
    return {entry["step"]: entry[key] for entry in trainer.state.log_history if key in entry}


def training_log(trainer):
    """What the trainer logged of training, but for times."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k} for entry in entries]


@pytest.mark.slow
def test_it_logs_what_the_run_folders_hold_and_training_does_not_notice(tmp_path):
    callback = PassAtKCallback(ROWS, "exact", "transformers", num_samples=6, k=[1, 4], params=PARAMS)
    trainer = sft(tmp_path / "with", callback, logging_steps=2)
    trainer.train()
    plain = sft(tmp_path / "without", logging_steps=2)
    plain.train()
    assert training_log(trainer) == training_log(plain)  # losses, gradient norms, entropies, token counts
    assert_same_weights(trainer.model.state_dict(), plain.model.state_dict())

    folders = sorted((tmp_path / "with/pass_at_k").iterdir())
    assert [folder.name for folder in folders] == ["step-00000003", "step-00000006"]
    for k in (1, 4):
        values = logged(trainer, f"eval_pass@{k}")
        assert list(values) == [3, 6]
        for folder, value in zip(folders, values.values(), strict=True):
            counts = [(p.num_samples, p.num_correct) for p in load_results(folder).problems]
            assert {n for n, _ in counts} == {6}
            assert value == pytest.approx(pass_at_k(6, [c for _, c in counts], k).mean())
    manifest = RunStore(folders[1]).manifest
    assert manifest["dataset"]["global_step"] == 6 and manifest["sampler"] == "transformers (in memory)"
    entries = [e for e in trainer.state.log_history if "eval_pass@1" in e]
    assert all(set(e) == {"eval_pass@1", "eval_pass@4", "epoch", "step"} for e in entries)


@pytest.mark.slow
def test_a_model_that_learns_gets_better(tmp_path):
    callback = PassAtKCallback(ROWS, "exact", "transformers", num_samples=8, k=8, every=1, params=PARAMS)
    trainer = sft(tmp_path, callback, max_steps=20)
    trainer.train()
    values = logged(trainer, "eval_pass@8")
    assert list(values) == list(range(1, 21)) and values[1] < 0.5 and values[20] > 0.9


@pytest.mark.slow
def test_a_sampler_object_is_used_as_it_is_every_so_many_steps(tmp_path):
    sampler = HalfRight()
    callback = PassAtKCallback(Dataset.from_list(ROWS), "math", sampler, num_samples=4, k=[1, 2], every=2)
    trainer = sft(tmp_path, callback, max_steps=5)
    trainer.train()
    assert sampler.calls == 2
    assert logged(trainer, "eval_pass@1") == {2: 0.5, 4: 0.5}
    assert logged(trainer, "eval_pass@2") == {2: pytest.approx(5 / 6), 4: pytest.approx(5 / 6)}


@pytest.mark.slow
def test_the_best_checkpoint_can_be_chosen_by_it(tmp_path):
    callback = PassAtKCallback(ROWS, "exact", HalfRight(), num_samples=4, k=2)
    best = dict(load_best_model_at_end=True, metric_for_best_model="eval_pass@2")
    trainer = sft(tmp_path, callback, eval_strategy="epoch", save_strategy="epoch", **best)
    trainer.train()
    assert trainer.state.best_metric == pytest.approx(5 / 6)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-3")


@pytest.mark.slow
def test_an_earlier_trainings_samples_are_left_alone(tmp_path):
    for _ in range(2):
        trainer = sft(tmp_path, PassAtKCallback(ROWS, "exact", HalfRight(), num_samples=2, k=1), num_train_epochs=1)
        trainer.train()
    assert sorted(p.name for p in (tmp_path / "pass_at_k").iterdir()) == ["step-00000003", "step-00000003-2"]
    assert _new_folder(tmp_path / "pass_at_k", 3).name == "step-00000003-3"


@pytest.mark.slow
def test_it_works_in_grpo_trainer(tmp_path):
    sizes = dict(per_device_train_batch_size=4, num_generations=4, max_completion_length=4)
    quiet = dict(report_to=[], save_strategy="no", disable_tqdm=True)
    trainer = GRPOTrainer(
        model=make_model(),
        args=GRPOConfig(output_dir=str(tmp_path), use_cpu=True, max_steps=2, logging_steps=2, **sizes, **quiet),
        reward_funcs=lambda completions, **kwargs: [float(len(c)) for c in completions],
        train_dataset=Dataset.from_list(ROWS * 4),
        processing_class=make_tokenizer(),
    )
    callback = PassAtKCallback(
        ROWS, "exact", "transformers", num_samples=4, k=[1, 4], every=1, trainer=trainer, params=PARAMS
    )
    trainer.add_callback(callback)
    trainer.train()
    assert list(logged(trainer, "eval_pass@4")) == [1, 2]
    # The reward of both steps waited for the trainer's own log.
    (entry,) = [e for e in trainer.state.log_history if "reward" in e]
    assert entry["step"] == 2 and "eval_reward" not in json.dumps(trainer.state.log_history)


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_with_two_processes_one_samples_and_none_waits_for_ever(tmp_path, fails):
    code, output = run(
        Path(__file__).with_name("callback_run.py"), tmp_path, fails, processes=2, ACCELERATE_USE_CPU="true"
    )
    if fails:
        assert code != 0
        assert "the endpoint is gone" in output
        assert "PassAtKCallback failed on the main process; the reason is in its error" in output
        return
    assert code == 0, output[-3000:]
    histories = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    values = [[e["eval_pass@2"] for e in history if "eval_pass@2" in e] for history in histories]
    assert len(values[0]) == 2 and values[0] == values[1]
    # One process sampled, into one folder a step.
    folders = sorted(p.name for p in (tmp_path / "pass_at_k").iterdir())
    assert len(folders) == 2 and all(name.count("-") == 1 for name in folders)
    for folder in folders:
        assert all(p.num_samples == 4 for p in load_results(tmp_path / "pass_at_k" / folder).problems)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "`num_samples` must be an integer of at least 1, got 0"),
        *(({"k": k}, "k must be from 1 to num_samples=4") for k in (5, [1, 5], 0, [])),
        *(({"every": every}, "every must be 'epoch' or a number of steps") for every in (0, "step", -1)),
        ({"sampler": "vllm"}, "sampler='vllm' is not known here"),
        ({"grader": "maths"}, "grader 'maths' is not known"),
        ({"dataset": [{"prompt": "p"}]}, "names 'answer', which is not a column of dataset; its columns are"),
        ({"dataset": [1]}, "dataset: row 0 is not an object with columns"),
    ],
)
def test_what_cannot_work_is_said_at_once(changes, message):
    with pytest.raises((ValueError, GraderError), match=message):
        PassAtKCallback(**{**dict(dataset=ROWS, grader="exact", sampler=HalfRight(), num_samples=4, k=1), **changes})


@pytest.mark.slow
def test_a_trainer_that_is_not_there_or_is_sharded_is_refused(tmp_path):
    trainer = sft(tmp_path)
    trainer.add_callback(PassAtKCallback(ROWS, "exact", HalfRight(), num_samples=4, k=1))
    with pytest.raises(ValueError, match=r"has no trainer to log through.*trainer.add_callback\(PassAtKCallback"):
        trainer.train()
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    sharded = SimpleNamespace(accelerator=SimpleNamespace(state=state))
    callback = PassAtKCallback(ROWS, "exact", "transformers", num_samples=4, k=1, trainer=sharded)
    with pytest.raises(ValueError, match="does not hold the whole model under FSDP and DeepSpeed ZeRO-3. Pass a sam"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_problems_and_files_are_data_sets_too(tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    from_file = PassAtKCallback(file, "exact", HalfRight(), num_samples=1, k=1).problems
    assert from_file == PassAtKCallback(read_problems(file), "exact", HalfRight(), num_samples=1, k=1).problems
    assert [p.answer for p in from_file] == ["2", "5", "6"]
