"""Numbers, durations and lists as text."""

from __future__ import annotations

import math

import pytest

from sddit.formatting import format_count, format_duration, format_number, format_si, join_words, slug


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
    assert format_si(number, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.25 s"),
        (59.4, "59.4 s"),
        (59.99, "1 min 0 s"),
        (7.4, "7.4 s"),
        (151, "2 min 31 s"),
        (3849, "1 h 4 min"),
        (171.4, "2 min 51 s"),
        (3600, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (1000, "1000"),
        (12_000, "12k"),
        (3.4e6, "3.4M"),
        (2e9, "2G"),
        (1.2e-5, "1.2e-5"),
        (1e15, "1e15"),
        (-0.25, "-0.25"),
        (math.inf, "inf"),
    ],
)
def test_numbers_have_at_most_four_digits(value, expected):
    assert format_number(value) == expected


def test_counts_and_enumerations():
    assert [format_count(number, "seed") for number in (0, 1, 3)] == ["0 seeds", "1 seed", "3 seeds"]
    assert [join_words(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("label", "name"), [("masked", "masked"), ("a mask_ratio=0.1", "a-mask_ratio-0.1"), ("{ a = 1 }", "a-1")]
)
def test_a_label_becomes_part_of_a_file_name(label, name):
    assert slug(label) == name
