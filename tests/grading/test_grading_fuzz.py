"""Some cases of `tests/fuzz/fuzz_graders.py`; `make fuzz` runs as many as wanted."""

import pytest
from fuzz.fuzz_graders import CASES_PER_EXAMPLE, PROPERTIES
from lengths import EXAMPLES


@pytest.mark.parametrize("fuzz", PROPERTIES, ids=lambda fuzz: fuzz.__name__)
@pytest.mark.slow
def test_graders_survive_anything(fuzz):
    fuzz(4 * EXAMPLES // CASES_PER_EXAMPLE)
