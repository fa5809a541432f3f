"""What the tests of commands share."""

import pytest


@pytest.fixture
def here(place, monkeypatch, tmp_path):
    """The folder `place` of a module, to work in, with a cache folder of the test's own."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return place
