"""Collect problems of an ablation, each once, with the arms in which it occurs. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from sddit.errors import Problem, SdditError

NO_ARM = ""  # label of the recipe without changes, and of the ablation itself


class ArmProblems:
    """Problems in order of appearance, each with the labels of its arms."""

    def __init__(self) -> None:
        self._labels: dict[Problem, list[str]] = {}

    def add(self, problems: Iterable[Problem], label: str = NO_ARM) -> None:
        """Add problems of one arm, or of the ablation itself."""
        for problem in problems:
            labels = self._labels.setdefault(problem, [])
            if label not in labels:
                labels.append(label)

    @contextmanager
    def collecting(self, label: str = NO_ARM) -> Iterator[None]:
        """Add the problems that are raised in the block."""
        try:
            yield
        except SdditError as failure:
            self.add(failure.problems, label)

    def __iter__(self) -> Iterator[Problem]:
        """Yield each problem; one that the recipe without changes does not have names its arms."""
        for problem, labels in self._labels.items():
            yield problem if NO_ARM in labels else with_arms(problem, labels)


def with_arms(problem: Problem, labels: Sequence[str]) -> Problem:
    """Return a problem that names its arms."""
    names = ", ".join(repr(label) for label in labels)
    return replace(problem, what=f"{'arm' if len(labels) == 1 else 'arms'} {names}: {problem.what}")
