"""Groups of arms in words."""

from types import SimpleNamespace

import pytest

from sddit.reports.ablation.phrases import format_arms


def plan(*arms: tuple[str, str, str]) -> SimpleNamespace:
    """A plan whose arm names are all that matters."""
    names = [{"label": label, "baseline": baseline, "named": named} for label, baseline, named in arms]
    return SimpleNamespace(arms=[SimpleNamespace(**one, is_baseline=one["label"] == one["baseline"]) for one in names])


FLAT = plan(("base", "base", "base"), ("a", "base", "a"), ("b", "base", "b"))
GRID = plan(*((f"{named} lr={lr}", f"base lr={lr}", named) for named in ("base", "a", "b") for lr in (1, 2)))
POINTS = plan(("lr=1", "lr=1", ""), ("lr=2", "lr=1", ""), ("lr=3", "lr=1", ""))


@pytest.mark.parametrize(
    ("of", "labels", "words"),
    [
        (FLAT, ["a", "b", "base"], "every arm"),
        (FLAT, ["b", "a"], "every arm but the baseline"),
        (FLAT, ["b"], "b"),
        (FLAT, ["b", "base"], "base, b"),
        (plan(("base", "base", "base"), ("a", "base", "a")), ["a"], "a"),
        (GRID, ["a lr=1", "a lr=2", "b lr=1", "b lr=2"], "every arm but the baselines"),
        (GRID, ["b lr=1", "a lr=1", "a lr=2"], "a at every point, b lr=1"),
        (POINTS, ["lr=2", "lr=3"], "every arm but the baseline"),
        (POINTS, ["lr=1", "lr=3"], "lr=1, lr=3"),
    ],
)
def test_arms_are_named_in_the_fewest_words(of, labels, words):
    assert format_arms(of, labels) == words
