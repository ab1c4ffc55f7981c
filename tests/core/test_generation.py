"""Which images are asked for."""

from __future__ import annotations

import pytest

from sddit.generation import LABELS, balanced, of_classes, random_labels
from sddit.recipes.field_types import expectation
from sddit.recipes.settings import EvaluateSettings


def test_a_drawn_label_is_a_function_of_the_seed_and_the_image() -> None:
    few, many = random_labels(10, 50, seed=3), random_labels(10, 2000, seed=3)
    assert few.ids == tuple(range(50)) == many.ids[:50]
    assert few.labels == many.labels[:50]
    assert random_labels(10, 50, seed=4).labels != few.labels
    assert few.labels != balanced(10, 50, seed=3).labels


def test_drawn_labels_are_uniform_over_the_classes() -> None:
    labels = random_labels(10, 20_000, seed=0).labels
    counts = [labels.count(label) for label in range(10)]
    assert sum(counts) == 20_000  # no label beyond the classes, so never the null label
    std = (20_000 * 0.1 * 0.9) ** 0.5
    assert all(abs(count - 2000) < 4.5 * std for count in counts)
    assert len(set(counts)) > 1  # drawn, not dealt out in turn


@pytest.mark.parametrize("labels", LABELS)
def test_without_classes_there_is_one_label(labels: str) -> None:
    assert LABELS[labels](0, 3, 1).labels == (0, 0, 0)


def test_images_of_a_class_have_the_numbers_of_balanced_ones() -> None:
    asked, whole = of_classes([2, 0], 3, num_classes=4, seed=1), balanced(4, 12, seed=1)
    assert [whole.labels[number] for number in asked.ids] == list(asked.labels) == [2, 2, 2, 0, 0, 0]


def test_the_key_and_the_requests_have_the_same_names() -> None:
    assert expectation(EvaluateSettings.model_fields["labels"]) == "one of " + ", ".join(f'"{name}"' for name in LABELS)
