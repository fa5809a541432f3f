"""Checks of arguments that no room's own tests cover."""

import re

import numpy as np
import pytest

from dco_trl.checks import check_integer, check_whole_numbers


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_an_integer_is_an_int(value):
    result = check_integer("seeds", value)
    assert result == 3 and type(result) is int


@pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float64(3), "3", None, 0, np.int64(-1)])
def test_anything_else_is_refused(value):
    expected = f"`seeds` must be an integer of at least 1 (one per run), got {value!r}."
    with pytest.raises(ValueError, match=re.escape(expected)):
        check_integer("seeds", value, note="one per run")


def test_whole_numbers_preview_what_they_got():
    with pytest.raises(ValueError, match=re.escape("k must be whole numbers (counts), got [0.5, 1. , ..., 3. , 4. ]")):
        check_whole_numbers("k", [0.5, 1, 2, 3, 4])
