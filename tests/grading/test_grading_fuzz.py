"""Some 2,400 cases of `tests/fuzz/fuzz_graders.py`; `main(examples)` there runs as many as wanted."""

import pytest
from fuzz.fuzz_graders import PROPERTIES


@pytest.mark.parametrize("fuzz", PROPERTIES, ids=lambda fuzz: fuzz.__name__)
def test_graders_survive_anything(fuzz):
    fuzz(40)
