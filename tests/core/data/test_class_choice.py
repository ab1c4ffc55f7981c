"""Classes are chosen by one rule, and never the wrong one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sddit.data.class_choice import choose_classes
from sddit.errors import SdditError

DIGITS = tuple(map(str, range(10)))
SYNSETS = ("goldfish", "tench, Tinca tinca", "crane", "bass", "crane")
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("wanted", "names", "chosen"),
    [
        ("cat", ("Cat", "cat"), [1]),
        ("Cat", ("Cat", "cat"), [0]),
        ("CAT", ("cat", "dog"), [0]),
        ("cat ", ("cat", "cat "), [1]),
        ("dog, cat", ("dog", "cat", "cat "), [0, 1]),
        (" DOG ,0", ("dog", "cat"), [0, 0]),
        (COMPOSED, (DECOMPOSED, "x"), [0]),
        (DECOMPOSED, (COMPOSED, "x"), [0]),
        (COMPOSED, (DECOMPOSED, COMPOSED), [1]),
        (COMPOSED.upper(), ("x", DECOMPOSED), [1]),
        ("0,3,7-9", DIGITS, [0, 3, 7, 8, 9]),
        ("#0,#7-9", DIGITS, [0, 7, 8, 9]),
        ("tench, Tinca tinca", SYNSETS, [1]),
        ("Tench, tinca tinca,goldfish", SYNSETS, [1, 0]),
        ('"tench, Tinca tinca",3', SYNSETS, [1, 3]),
        ('"a,b"', ("a", "b", "a,b"), [2]),
        ('"a","b"', ("a", "b", "a,b"), [0, 1]),
        ('"say ""a"""', ("x", 'say "a"'), [1]),
        ('"a"', ('"a"', "a"), [0]),
        ("#1", ("1", "2", "3"), [1]),
        ('"1"', ("1", "2", "3"), [0]),
        ("10", ("1", "10"), [1]),
        ("0-9", ("0-9", "10-19"), [0]),
        (["cat", 0, "0-1"], ("dog", "cat"), [1, 0, 0, 1]),
        (1, ("1", "2"), [1]),
        ([1], ("1", "2"), [1]),
        ([2], ("dog", "cat"), [2]),  # the null label
        ([0], (), [0]),
        (range(2), ("dog", "cat"), [0, 1]),
        (np.array([1, 0], dtype=np.uint8), ("dog", "cat"), [1, 0]),
        (torch.tensor([1, 0]), ("dog", "cat"), [1, 0]),
        (torch.tensor(1), ("dog", "cat"), [1]),
    ],
)
def test_a_class_is_chosen_by_name_or_number(wanted: Any, names: tuple[str, ...], chosen: list[int]) -> None:
    assert choose_classes(wanted, names, where="classes") == chosen


@pytest.mark.parametrize(
    ("wanted", "names", "words"),
    [
        ("CAT", ("Cat", "cat"), r"SD-T924.*2 classes(.|\n)*#0 'Cat', #1 'cat'"),
        ("crane", SYNSETS, r"SD-T924(.|\n)*#2 'crane', #4 'crane'(.|\n)*#2"),
        ("cat", ("cat ", " cat"), "SD-T924"),
        ("1", ("1", "2", "3"), r"SD-T924.*number and the name(.|\n)*#0 '1', #1 '2'"),
        ("1", ("01", "02", "03"), "SD-T924"),
        ("0-2", ("1", "2", "3"), "SD-T924.*range 0-2"),
        ("0-1", ("x", "y", "0-1"), "SD-T924"),
        ("a,b", ("a", "b", "a,b"), "SD-T924.*two ways"),
        ("a,b,c", ("a", "b", "c", "a,b"), "SD-T924.*two ways"),
        (["1"], ("1", "2"), "SD-T924"),
        ("tiger", SYNSETS, r"SD-T921(.|\n)*double quotes"),
        ("caat", ("cat", "dog"), r"SD-T921(.|\n)*did you mean 'cat'"),
        ("", ("cat",), "SD-T921"),
        ("-1", ("cat",), "SD-T921"),
        ('"0"', ("cat",), "SD-T921"),
        ("1", ("cat",), r"SD-T904(.|\n)*0 to 0"),
        ([2], ("cat",), "SD-T904"),
        ([-1], ("cat",), "SD-T904"),
        ([1], (), "SD-T904"),
        ("cat", (), "SD-T920"),
        ("3-1", DIGITS, r"SD-T911.*reversed"),
        ([0] * 10_001, DIGITS, r"SD-T911.*too long"),
        ([0.9], DIGITS, r"SD-T925(.|\n)*0\.9 \(float\)"),
        (2.0, DIGITS, "SD-T925"),
        (True, DIGITS, "SD-T925"),
        ([False], DIGITS, "SD-T925"),
        (torch.tensor([0.5]), DIGITS, "SD-T925"),
        (torch.tensor([True]), DIGITS, "SD-T925"),
        (torch.tensor([[1], [2]]), DIGITS, "SD-T925"),
        (b"01", DIGITS, "SD-T925"),
        ([], DIGITS, "SD-T925.*no class"),
        (None, DIGITS, "SD-T925"),
    ],
)
def test_an_unknown_or_ambiguous_class_is_refused(wanted: Any, names: tuple[str, ...], words: str) -> None:
    with pytest.raises(SdditError, match=words):
        choose_classes(wanted, names, where="classes")


def test_a_long_list_of_many_names_is_chosen_at_once() -> None:
    names = [f"animal {number}, of kind {number}" for number in range(1000)]
    assert choose_classes(",".join(names * 2), names, where="classes") == [*range(1000)] * 2
