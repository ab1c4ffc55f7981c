"""Large numbers in few letters."""

from __future__ import annotations

import pytest

from sddit.formatting import big


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (None, "", "not stated"),
        (0, "", "0"),
        (999, "", "999"),
        (999.6, "", "1 k"),
        (6.84e9, "", "6.84 G"),
        (84e6, "B", "84 MB"),
        (1e22, "", "1e+04 E"),
    ],
)
def test_three_digits_and_a_prefix(number, unit, text):
    assert big(number, unit) == text
