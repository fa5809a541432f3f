"""Which index `make setup` asks for torch: the one of CPU builds, unless the user has said otherwise."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from local_server import served

SCRIPT = Path(__file__).parents[1] / ".ci" / "torch_index.py"
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only on Linux does pip's torch bring CUDA"
)


def run(index: str, **environment: str) -> tuple[str, str]:
    names = ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "http_proxy", "https_proxy")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    environment = clean | {"PIP_CONFIG_FILE": os.devnull} | environment
    done = subprocess.run([sys.executable, SCRIPT, index], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


@pytest.fixture(scope="module")
def index():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/cpu/torch/" else 404)
            self.end_headers()

    with served(Handler) as address:
        yield address


def test_an_index_that_answers_is_asked(index):
    assert run(f"{index}/cpu") == (f"--extra-index-url {index}/cpu", "")


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/cpu", "not an address", "{index}/gone"])
def test_an_index_that_cannot_be_reached_is_left_out_with_what_that_costs(index, address):
    address = address.format(index=index)
    option, said = run(address)
    assert option == "" and said.startswith(f"{address} cannot be reached (")
    assert "5.7 GB" in said and "TORCH_INDEX=ADDRESS" in said


@pytest.mark.parametrize("name", ["PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"])
def test_what_the_user_has_configured_comes_first(index, name):
    assert run(f"{index}/cpu", **{name: "file:///wheels"}) == ("", "")
