"""Recipes whose student and teacher see the same image are warned of."""

from __future__ import annotations

import pytest

from sddit.recipes.resolve import resolve


@pytest.mark.parametrize(
    ("overrides", "trivial"),
    [
        (["teacher_noise=same", "mask_ratio=0"], True),
        (["teacher_noise=same", "mask_ratio=0.2", "teacher_mask=visible"], True),
        (["teacher_noise=same", "mask_ratio=0.2"], False),
        (["teacher_noise=same", "mask_ratio=0", "shared_noise=false"], False),
        (["mask_ratio=0"], False),
    ],
)
def test_a_pair_that_is_one_image_is_warned_of(overrides, trivial):
    recipe = resolve("quickstart", [f"pair_sampler.{text}" for text in overrides])
    assert any("pair_sampler: student and teacher see the same image" in text for text in recipe.warnings) == trivial


def test_without_a_term_that_reads_the_teacher_nothing_is_warned_of():
    overrides = ["pair_sampler.teacher_noise=same", "pair_sampler.mask_ratio=0", "loss.discrimination.weight=0"]
    assert not any("same image" in text for text in resolve("quickstart", overrides).warnings)
