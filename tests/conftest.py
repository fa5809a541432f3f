"""Shared by all tests: quiet, offline, single-threaded, spread over the cores, and honest about what was skipped."""

import logging
import os

# Before torch is imported: two test processes share two cores, and tiny tensors gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


def pytest_xdist_auto_num_workers():
    """`-n auto`: one process per core that this process may use; xdist itself counts no hyper-threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


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
