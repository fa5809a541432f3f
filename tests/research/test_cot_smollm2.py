"""Chains of thought with SmolLM2: the commands that the script runs, and what it makes of their counts."""

import numpy as np
import pytest

from dco_trl.cli import _common, main, train
from dco_trl.runs import Problem, RunStore, grade_run
from dco_trl.trainer import CoTDCOConfig, DCOConfig
from research.chain_of_thought import smollm2 as script


@pytest.mark.parametrize("method", script.METHODS)
def test_training_differs_in_what_is_compared_alone(method, tmp_path):
    command, *argv = script.training_command("m", tmp_path / "d.jsonl", method, 3, tmp_path, script.Sizes())
    config_class = CoTDCOConfig if command == "train-cot" else DCOConfig
    _, args, model, _ = train.parse(argv, config_class)
    assert args.num_attempts == (script.NUM_ATTEMPTS if method == "DCO, own" else 1) and args.seed == 3
    assert (args.num_train_epochs, args.save_steps, args.learning_rate) == (6, 24, 5e-5)
    assert model.model_name_or_path == "m" and not model.use_peft
    if command == "train-cot":
        assert args.targets == "sampled" and args.ce_warmup_steps == 8 and args.sampler_kwargs == script.ENGINE


def test_held_out_problems_are_sampled_with_a_seed_for_each_epoch_and_run(tmp_path, monkeypatch):
    seen = []
    parse = _common.parse
    monkeypatch.setattr(_common, "parse", lambda *given, **more: seen.append(parse(*given, **more)) or ())
    monkeypatch.setattr(_common, "status", lambda *given: 0)
    for seed, epoch in ((0, 3), (0, 6), (1, 3)):
        assert main(script.eval_command(tmp_path / "t.jsonl", epoch, seed, tmp_path, script.Sizes())) == 0
    assert len({sampling.seed for _, _, sampling, *_ in seen}) == 3
    data, model, sampling, *_ = seen[1]
    assert model.model == str(tmp_path / "model" / "checkpoint-48") and sampling.sampler == "vllm"
    assert (data.num_problems, sampling.num_samples, sampling.max_tokens) == (160, 16, 96)


@pytest.mark.slow
def test_a_command_that_fails_names_its_output(tmp_path):
    with pytest.raises(RuntimeError, match=r"`dco-trl grade` ended with 2; its output is in .*log"):
        script.call(["grade", str(tmp_path / "nowhere")], tmp_path / "log")
    assert "nowhere" in (tmp_path / "log").read_text()


def test_counts_become_paired_differences(tmp_path, capsys):
    problems = [Problem(str(i), "?", "1") for i in range(20)]
    sizes, found = script.Sizes(epochs=(1, 2)), {}
    for method, shares in (("cross-entropy", (0.5, 0.4)), ("DCO, own", (0.8,))):
        for epoch, share in zip(sizes.epochs_of(method), shares, strict=True):
            run = script.folder_of(tmp_path, method, 0) / f"epoch-{epoch}"
            with RunStore.writing(run, {"model": method}, problems) as store:
                store.write_samples(
                    (p.problem_id, i, "1" if i < 10 * share else "2", 1, "stop") for p in problems for i in range(10)
                )
            grade_run(run, "exact", progress=False)
        record = {"correct": script.counts(script.folder_of(tmp_path, method, 0), sizes.epochs_of(method))}
        found[method] = {0: script.measured(record, 10, (1, 4))}
    summary = script.summarise(found, sizes, (1, 4))
    script.print_tables(summary)
    assert np.array(summary["mean"]["cross-entropy"])[:, 0].tolist() == pytest.approx([0.5, 0.4])
    last, best = summary["differences"]
    assert (last["from"], best["from"]) == ("cross-entropy, last epoch", "cross-entropy, best epoch")
    assert (last["difference"][0], best["difference"][0]) == pytest.approx((0.4, 0.3))
    assert best["low"][0] < 0.3 < best["high"][0]
    printed = capsys.readouterr().out
    assert "| | epoch | pass@1 | pass@4 | pass@4, seed 0 |\n|---|---|---|---|---|\n" in printed
    assert "| DCO, own | 2 | 80.0 | 100.0 | 100.0 |" in printed
