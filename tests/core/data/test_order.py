"""The order of the data: every image once an epoch, and the same batch at a step however the run came there."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sddit.data.order import batch_ids, permutation
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
