"""The order of the data: every image once an epoch, and the same batch at a step however the run came there."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sddit.data.order import balanced_batch_ids, batch_ids, class_members, permutation
from sddit.errors import SdditError

SEEDS = st.integers(0, 2**63)


@given(seed=SEEDS, size=st.integers(1, 60), batch=st.integers(1, 60), epochs=st.integers(1, 4))
def test_every_image_comes_once_an_epoch(seed: int, size: int, batch: int, epochs: int) -> None:
    batch = min(batch, size)
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(-(-epochs * size // batch)):
        ids, of = batch_ids(seed, step, batch, size)
        assert len(ids) == len(of) == batch
        seen.update(zip(of, ids, strict=True))
    whole = {(epoch, i) for epoch in range(epochs) for i in range(size)}
    assert whole <= seen.keys()
    assert set(seen.values()) == {1}


@given(seed=SEEDS, step=st.integers(0, 10_000))
def test_a_step_needs_no_step_before_it(seed: int, step: int) -> None:
    once = batch_ids(seed, step, 7, 31)
    permutation.cache_clear()
    assert batch_ids(seed, step, 7, 31) == once


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = {tuple(permutation(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_is_the_same_for_ever() -> None:
    assert permutation(0, 0, 8).tolist() == [1, 4, 7, 2, 5, 6, 0, 3]
    assert permutation(1, 0, 8).tolist() != permutation(0, 0, 8).tolist()


def test_every_place_is_as_likely_for_every_image() -> None:
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[np.arange(6), permutation(5, epoch, 6)] += 1
    chi_square = ((counts - 500) ** 2 / 500).sum()  # 25 degrees of freedom: above 52.6 once in a thousand
    assert chi_square < 52.6


def test_a_split_smaller_than_a_batch_is_refused() -> None:
    assert len(batch_ids(0, 0, 8, 8)[0]) == 8
    with pytest.raises(SdditError) as refused:
        batch_ids(0, 0, 9, 8)
    assert refused.value.problems[0].code == "SD-D305"


LABELS = np.array([0] * 3 + [2] * 11 + [1] * 5 + [0] * 2)  # 5, 5 and 11 images of the classes 0, 1 and 2
MEMBERS = class_members(LABELS)


def balanced_labels(seed: int, steps: range, batch: int) -> list[int]:
    return [int(LABELS[i]) for step in steps for i in balanced_batch_ids(seed, step, batch, MEMBERS)[0]]


@given(seed=SEEDS, start=st.integers(0, 1000), steps=st.integers(1, 9), batch=st.integers(1, 21))
def test_balanced_batches_show_every_class_equally_often(seed: int, start: int, steps: int, batch: int) -> None:
    counts = Counter(balanced_labels(seed, range(start, start + steps), batch))
    shown = [counts[label] for label in range(3)]
    assert max(shown) - min(shown) <= 2  # a span may cut a round at both ends
    if start == 0:
        assert max(shown) - min(shown) <= 1
    plain = Counter(int(LABELS[i]) for step in range(21) for i in batch_ids(seed, step, 21, 21)[0])
    assert plain[2] == 11 * 21 != plain[0]


@given(seed=SEEDS)
def test_a_class_shows_all_its_images_before_one_comes_again(seed: int) -> None:
    pairs = [pair for step in range(22) for pair in zip(*balanced_batch_ids(seed, step, 15, MEMBERS), strict=True)]
    assert len(set(pairs)) == len(pairs)  # no image twice in an epoch of its class
    for label, epochs in ((0, 22), (1, 22), (2, 10)):
        own = [(image, epoch) for image, epoch in pairs if LABELS[image] == label]
        assert len(own) == 110 == epochs * len(MEMBERS[label])
        assert {epoch for _, epoch in own} == set(range(epochs))


@given(seed=SEEDS, step=st.integers(0, 10_000))
def test_a_balanced_step_needs_no_step_before_it(seed: int, step: int) -> None:
    once = balanced_batch_ids(seed, step, 7, MEMBERS)
    assert balanced_batch_ids(seed, step, 7, MEMBERS) == once != balanced_batch_ids(seed, step + 1, 7, MEMBERS)


def test_the_balanced_order_is_the_same_for_ever() -> None:
    first = [4, 17, 1, 18, 11, 19, 15, 3, 0]
    assert balanced_batch_ids(0, 0, 9, MEMBERS) == (first, [0] * 9)
    assert balanced_batch_ids(1, 0, 9, MEMBERS)[0] != first


def test_classes_without_images_are_not_drawn() -> None:
    assert [one.tolist() for one in class_members(np.array([3, 0, 3]))] == [[1], [0, 2]]


def test_a_balanced_split_smaller_than_a_batch_is_refused() -> None:
    assert len(balanced_batch_ids(0, 0, 21, MEMBERS)[0]) == 21
    with pytest.raises(SdditError) as refused:
        balanced_batch_ids(0, 0, 22, MEMBERS)
    assert refused.value.problems[0].code == "SD-D305"
