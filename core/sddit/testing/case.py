"""Hold a component under test: its problems so far, and the questions that are asked of several kinds."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sddit.errors import Problem, SdditError, describe_exception
from sddit.interfaces import Component


class Case:
    """A component under test, and the problems found in it so far.

    `runtime` replaces what the kit would build it with. The kit sets `params`, an instance of `component.params`.
    """

    def __init__(self, component: Component[Any], runtime: Mapping[str, Any]) -> None:
        self.component = component
        self.runtime = runtime
        self.params: Any = None
        self.problems: list[Problem] = []

    def build(self, **runtime: Any) -> Any:
        """Build the component from what the kit offers, or from what the caller gave instead."""
        return self.component.build(self.params, **{**runtime, **self.runtime})

    def add(self, what: str, *, got: Any = "", expect: Any = "", fix: str = "", where: str = "") -> None:
        """Note a problem, once. A tensor in `got` is shown as `(6, 2, 8, 8) float32`."""
        if isinstance(got, Tensor):
            got = f"{tuple(got.shape)} {str(got.dtype).removeprefix('torch.')}"
        name = f"{self.component.kind} {self.component.qualified}".replace(" /", " ")
        problem = Problem("SD-P220", what, where or name, str(got), str(expect), fix)
        if problem not in self.problems:
            self.problems.append(problem)

    def expect(self, holds: bool, what: str, **fields: Any) -> bool:
        """Note a problem unless `holds`; returns `holds`."""
        if not holds:
            self.add(what, **fields)
        return holds

    def equal(self, found: Any, expected: Any, what: str, fix: str = "") -> bool:
        """Note two values that differ."""
        return self.expect(found == expected, what, got=found, expect=expected, fix=fix)

    def instance(self, value: Any, of: Any, what: str, fix: str = "") -> bool:
        """Note an object of another type."""
        return self.expect(isinstance(value, of), what, got=type(value).__name__, fix=fix)

    def shaped(self, value: Any, shape: tuple[int, ...], what: str, fix: str = "") -> bool:
        """Return whether `value` is a finite tensor of this shape, and note if not."""
        if not (isinstance(value, Tensor) and tuple(value.shape) == shape):
            got = value if isinstance(value, Tensor) else type(value).__name__
            return self.expect(False, f"{what} has a wrong shape", got=got, expect=tuple(shape), fix=fix)
        num_wrong = int((~value.isfinite()).sum())
        return self.expect(num_wrong == 0, f"{what} is not finite", got=f"{num_wrong} numbers of {value.numel()}")

    @contextlib.contextmanager
    def unchanged(self, tensors: Callable[[], Mapping[str, Tensor]], what: str, fix: str) -> Iterator[None]:
        """Note every named tensor that changes inside."""
        before = {name: value.detach().clone() for name, value in tensors().items()}
        yield
        after = tensors()
        for name, value in before.items():
            self.expect(name in after and torch.equal(after[name], value), f"{what}: {name}", fix=fix)

    @contextlib.contextmanager
    def trying(self, doing: str, fix: str = "") -> Iterator[None]:
        """Note what is raised inside, and continue after it."""
        try:
            yield
        except SdditError as refusal:
            self.problems += refusal.problems
        except Exception as failure:
            frame = traceback.extract_tb(failure.__traceback__)[-1]
            where = f"{frame.filename}:{frame.lineno}"
            self.add(f"it raised an error while {doing}", got=describe_exception(failure), where=where, fix=fix)

    @contextlib.contextmanager
    def no_global_randomness(self, doing: str = "it") -> Iterator[None]:
        """Note a use of torch's global generator, whose numbers cannot be repeated."""
        before = torch.get_rng_state()
        yield
        if not torch.equal(torch.get_rng_state(), before):
            torch.set_rng_state(before)
            what = f"{doing} took numbers from torch's global generator"
            self.add(what, fix="use the keyed draws that are handed to it")
