"""Endpoints that fail on purpose, whose failed requests are retried at once."""

import shutil

import pytest
from scripted_endpoint import Endpoint
from word_llama import make_word_tokenizer


def _endpoint(monkeypatch, owned_by):
    monkeypatch.setattr("dco_trl.sampling.endpoint._FIRST_WAIT", 0.01)
    endpoint = Endpoint(owned_by)
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.fixture
def endpoint(monkeypatch):
    yield from _endpoint(monkeypatch, "nobody")


@pytest.fixture
def vllm_like(monkeypatch):
    yield from _endpoint(monkeypatch, "vllm")


@pytest.fixture
def trained_folder(adapters, tmp_path):
    """An adapter's folder as training leaves it: its tokenizer has another end of sequence and another template."""
    tokenizer = make_word_tokenizer()
    tokenizer.eos_token, tokenizer.chat_template = "g", "f {{ messages[0].content }}"
    folder = shutil.copytree(adapters[0], tmp_path / "trained")
    tokenizer.save_pretrained(folder)
    return folder
