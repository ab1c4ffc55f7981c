"""Keyed randomness is a function of its key, and statistically sound."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sddit.diffusion.draws import KeyedDraws, generator, philox

# Known answers of Philox 4x32-10 published with the Random123 library: counter, key, output.
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    assert philox(torch.tensor(counter)[:, None], key)[:, 0].tolist() == expected


def test_philox_is_vectorised_over_counters() -> None:
    counters = torch.tensor([answer[0] for answer in KNOWN_ANSWERS]).T
    together = philox(counters, (5, 7))
    alone = torch.cat([philox(counters[:, i : i + 1], (5, 7)) for i in range(3)], dim=1)
    assert torch.equal(together, alone)


@settings(max_examples=30, deadline=None)
@given(ids=st.lists(st.integers(0, 10**6), min_size=1, max_size=9), step=st.integers(0, 10**6), size=st.integers(1, 9))
def test_a_draw_does_not_depend_on_the_batch_around_it(ids: list[int], step: int, size: int) -> None:
    together = KeyedDraws(3, step, torch.tensor(ids)).normal("noise", (size, 2))
    for row, one in enumerate(ids):
        assert torch.equal(KeyedDraws(3, step, torch.tensor([one])).normal("noise", (size, 2))[0], together[row])


@pytest.mark.parametrize("change", ["seed", "purpose", "step", "sample", "epoch", "scope"])
def test_each_part_of_the_key_changes_the_draw(change: str) -> None:
    ids, epochs = torch.tensor([4]), torch.tensor([2])
    base = KeyedDraws(1, 10, ids, epochs).uniform("noise", (8,))
    other = {
        "seed": lambda: KeyedDraws(2, 10, ids, epochs).uniform("noise", (8,)),
        "purpose": lambda: KeyedDraws(1, 10, ids, epochs).uniform("level", (8,)),
        "step": lambda: KeyedDraws(1, 11, ids, epochs).uniform("noise", (8,)),
        "sample": lambda: KeyedDraws(1, 10, ids + 1, epochs).uniform("noise", (8,)),
        "epoch": lambda: KeyedDraws(1, 10, ids, epochs + 1).uniform("noise", (8,)),
        "scope": lambda: KeyedDraws(1, 10, ids, epochs).uniform("noise", (8,), scope="step"),
    }[change]()
    assert not torch.equal(base, other)
    assert torch.equal(base, KeyedDraws(1, 10, ids, epochs).uniform("noise", (8,)))


def test_order_of_calls_means_nothing() -> None:
    ids = torch.arange(3)
    first, second = KeyedDraws(1, 0, ids), KeyedDraws(1, 0, ids)
    a = first.normal("noise", (4,))
    first.uniform("level")
    second.uniform("level")
    second.uniform("mask", (16,))
    assert torch.equal(a, second.normal("noise", (4,)))


def test_step_scope_is_one_value_for_the_whole_batch() -> None:
    one = KeyedDraws(1, 5, torch.arange(2)).uniform("ratio", scope="step")
    other = KeyedDraws(1, 5, torch.arange(7) + 3).uniform("ratio", scope="step")
    assert one.shape == (1,)
    assert torch.equal(one, other)


def test_moments_and_independence_within_five_standard_errors() -> None:
    n = 200_000
    normal = KeyedDraws(0, 0, torch.arange(n // 100)).normal("noise", (100,)).double()
    uniform = KeyedDraws(0, 0, torch.arange(n // 100)).uniform("level", (100,))
    assert abs(normal.mean().item()) < 5 / n**0.5
    assert abs(normal.var().item() - 1) < 5 * (2 / n) ** 0.5
    assert abs((normal**4).mean().item() - 3) < 5 * (96 / n) ** 0.5
    assert abs(uniform.mean().item() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert 0 < uniform.min().item() < uniform.max().item() < 1
    next_step = KeyedDraws(0, 1, torch.arange(n // 100)).normal("noise", (100,)).double()
    assert abs((normal * next_step).mean().item()) < 5 / n**0.5
    assert abs((normal[:-1] * normal[1:]).mean().item()) < 5 / n**0.5


def test_initial_weights_have_a_generator_by_name() -> None:
    a = torch.randn(5, generator=generator(0, "init/a"))
    assert torch.equal(a, torch.randn(5, generator=generator(0, "init/a")))
    assert not torch.equal(a, torch.randn(5, generator=generator(0, "init/b")))
    assert not torch.equal(a, torch.randn(5, generator=generator(1, "init/a")))
