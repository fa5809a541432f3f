"""`CoTDCOTrainer` with vLLM's own server, on two processes that share the model: the server has its weights."""

import numpy as np
import pytest
import torch
from sharding import HERE, run

from dco_trl.sampling import ServerSampler

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.xdist_group("vllm")]


@pytest.fixture(scope="module")
def windows(vllm_server, checkpoint, tmp_path_factory):
    """For each kind of training, what each process saw at each window."""
    folder = tmp_path_factory.mktemp("server")
    # The server has room for one adapter: two processes with one each would not fit.
    run("fsdp2", HERE / "cot_server_run.py", checkpoint, vllm_server, folder)
    sampler = ServerSampler("tiny", base_url=vllm_server, progress=False)
    sampler.reload_weights(str(checkpoint))  # for the other tests of this server
    sampler.close()
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
