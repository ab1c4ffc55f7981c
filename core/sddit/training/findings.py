"""Collect what is wrong with a component: the conformance kit and the first training step report it alike."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sddit.errors import Problem, SdditError, describe_exception, ran_out
from sddit.losses import LossTerm
from sddit.plugins.mistakes import NO_SUPER, author_line, suggest_fix
from sddit.plugins.shared_state import describe, settings

GENERATORS: dict[str, tuple[str, str, str]] = {
    "torch": ("torch", "get_rng_state", "set_rng_state"),
    "CUDA": ("torch.cuda", "get_rng_state_all", "set_rng_state_all"),
    "Python": ("random", "getstate", "setstate"),
    "NumPy": ("numpy.random", "get_state", "set_state"),
}
"""{whose global generator: its module, getter and setter}."""


KEYED_DRAWS = {
    "losses": 'draw from ctx.draws, such as ctx.draws.normal("my_loss/noise", shape)',
    "pair_samplers": 'draw from draws, such as draws.uniform("my_pairs/level")',
    "datasets": "return images without random changes (dataset.flip mirrors them in training), "
    "and draw those that are made from torch.Generator().manual_seed(params.seed)",
}
"""{kind of component: where its random numbers come from}."""


class Findings:
    """What is wrong with one component.

    Args:
        name: where a problem is, unless a line is known.
        kind: registry of the component.
        code: file or folder of its plugin, if known.
        raised: the code and the start of the message for an exception of the component.
    """

    def __init__(
        self, name: str, kind: str, code: str = "", raised: tuple[str, str] = ("SD-P220", "it raised an error")
    ) -> None:
        self.name, self.kind, self.code, self.raised = name, kind, code, raised
        self.problems: list[Problem] = []

    def add(
        self, what: str, *, got: Any = "", expect: Any = "", fix: str = "", where: str = "", code: str = "SD-P220"
    ) -> None:
        """Note a problem, once. A tensor in `got` is shown as `(6, 2, 8, 8) float32`."""
        if isinstance(got, Tensor):
            got = f"{tuple(got.shape)} {str(got.dtype).removeprefix('torch.')}"
        problem = Problem(code, what, where or self.name, str(got), str(expect), fix)
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

    def initialized(self, module: nn.Module) -> bool:
        """Note a module whose __init__ did not call that of its base class."""
        return self.expect(
            is_initialized(module),
            "it does not initialize its base class",
            where=definition_of(type(module)),
            fix=NO_SUPER,
        )

    def shaped(self, value: Any, shape: tuple[int, ...], what: str, fix: str = "") -> bool:
        """Return whether `value` is a finite tensor of this shape, and note if not."""
        return self.of_shape(value, shape, what, fix) and self.finite(value, what)

    def of_shape(self, value: Any, shape: tuple[int, ...], what: str, fix: str = "") -> bool:
        """Return whether `value` is a tensor of this shape, and note if not."""
        right = isinstance(value, Tensor) and tuple(value.shape) == shape
        got = value if isinstance(value, Tensor) else type(value).__name__
        return self.expect(right, f"{what} has a wrong shape", got=got, expect=tuple(shape), fix=fix)

    def finite(self, value: Tensor, what: str, **fields: str) -> bool:
        """Return whether a tensor is finite, and note if not."""
        wrong = int((~value.isfinite()).sum())
        got = f"{wrong} of {value.numel()} values {'is' if wrong == 1 else 'are'} NaN or infinite"
        return self.expect(wrong == 0, f"{what} is not finite", got=got, **fields)

    @contextlib.contextmanager
    def unchanged(self, tensors: Callable[[], Mapping[str, Tensor]], what: str, fix: str) -> Iterator[None]:
        """Note every named tensor that changes inside."""
        before = {name: value.detach().clone() for name, value in tensors().items()}
        yield
        after = tensors()
        for name, value in before.items():
            self.expect(name in after and same_bits(after[name], value), f"{what}: {name}", fix=fix)

    @contextlib.contextmanager
    def trying(self, doing: str, fix: str = "", *, masked: bool = False) -> Iterator[None]:
        """Note what is raised inside, and continue after it. Errors of memory are raised again.

        Also note gradients that are switched off, and other settings of the process that are changed, for all that
        follows. Gradient mode and default dtype are restored.
        """
        with_gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
        read = settings()
        before = {name: now() for name, now in read.items()}
        try:
            yield
        except SdditError as refusal:
            self.problems += refusal.problems
        except Exception as failure:
            if ran_out(failure):
                raise
            self.add_failure(failure, doing, suggest_fix(failure, kind=self.kind, masked=masked) or fix)
        if torch.is_grad_enabled() != with_gradients:
            torch.set_grad_enabled(with_gradients)
            self.add("it switched gradients off or on for everything else", fix="use  with torch.no_grad():  instead")
        for name, now in read.items():
            if (after := now()) != before[name]:
                got = f"{describe(before[name])} -> {describe(after)}"
                fix = "restore it before it returns, or do without the change"
                self.add(f"it changed {name} for everything else", got=got, expect="as before", fix=fix)
        torch.set_default_dtype(dtype)

    def add_failure(self, failure: BaseException, doing: str, fix: str) -> None:
        """Note an exception at the last line of the author's."""
        where = author_line(failure, self.code)
        if not where and not self.code and (frames := traceback.extract_tb(failure.__traceback__)):
            where = f"{frames[-1].filename}:{frames[-1].lineno}"
        code, what = self.raised
        self.add(f"{what} while {doing}", got=describe_exception(failure), where=where, fix=fix, code=code)

    @contextlib.contextmanager
    def no_global_randomness(self, doing: str = "it") -> Iterator[None]:
        """Note a use of a global generator, whose numbers cannot be repeated, and restore its state."""
        before = generator_states()
        yield
        now = generator_states()
        restore_generators(before)
        for name in [name for name in before if not same_state(now[name], before[name])]:
            what = f"{doing} took numbers from {name}'s global generator"
            self.add(what, fix=KEYED_DRAWS.get(self.kind, "use the keyed draws that are handed to it"))


def generator_states() -> dict[str, Any]:
    """Return the states of the global generators that can be in use."""
    if "numpy" in sys.modules:
        importlib.import_module("numpy.random")  # which numpy imports only when it is used
    found = {name: entry for name, entry in GENERATORS.items() if entry[0] in sys.modules}
    if not (
        torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # untyped in torch
    ):
        found.pop("CUDA")
    return {name: getattr(sys.modules[module], getter)() for name, (module, getter, _) in found.items()}


def restore_generators(states: Mapping[str, Any]) -> None:
    """Set the global generators to the states that `generator_states` returned."""
    for name, state in states.items():
        module, _, setter = GENERATORS[name]
        getattr(sys.modules[module], setter)(state)


def same_state(a: Any, b: Any) -> bool:
    """Return whether two states of a generator are equal."""
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same_state, a, b))
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return bool((a == b).all()) if hasattr(a, "tolist") else bool(a == b)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal, also where they are NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def is_initialized(module: nn.Module) -> bool:
    """Return whether the __init__ of its base classes ran: a module without it breaks at its first use."""
    needed = {"_modules", "_logged"} if isinstance(module, LossTerm) else {"_modules"}
    return needed <= vars(module).keys()


def definition_of(kind: type) -> str:
    """Return `file:line` of the __init__ that a class defines itself, or an empty string."""
    code = getattr(vars(kind).get("__init__"), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""
