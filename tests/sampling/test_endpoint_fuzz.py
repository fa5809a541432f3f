"""Some cases of `tests/fuzz/fuzz_endpoint.py`; `make fuzz` runs as many as wanted."""

import pytest
from fuzz.fuzz_endpoint import PROPERTIES
from lengths import EXAMPLES


@pytest.mark.parametrize("fuzz", PROPERTIES, ids=lambda fuzz: fuzz.__name__)
def test_any_answer_is_a_sample_or_an_endpoint_error(fuzz):
    fuzz(EXAMPLES)
