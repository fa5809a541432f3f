"""Some cases of `tests/fuzz/fuzz_data.py` and `fuzz_store.py`; `make fuzz` runs as many as wanted."""

import pytest
from fuzz import fuzz_data, fuzz_store
from lengths import EXAMPLES


@pytest.mark.parametrize("fuzz", (*fuzz_data.PROPERTIES, *fuzz_store.PROPERTIES), ids=lambda fuzz: fuzz.__name__)
@pytest.mark.slow
def test_only_documented_errors_and_never_a_wrong_number(fuzz):
    fuzz(EXAMPLES)
