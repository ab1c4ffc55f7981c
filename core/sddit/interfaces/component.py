"""Describe components before they are built, their settings in a recipe, and their numerical checks. Torch-free."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from sddit.errors import error, one_of
from sddit.interfaces.params import Params, settings_json

T = TypeVar("T")
P = TypeVar("P", bound=Params, covariant=True)

COMPONENT_NOTE = "component: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Component(Generic[T]):
    """A component as its plugin registered it."""

    kind: str  # the registry it is in: "losses"
    name: str  # the short name that a recipe writes
    factory: str | Callable[..., T]  # "package.module:attribute", imported when built; or the class itself
    params: type[Params]  # its settings: types, defaults, bounds, descriptions
    summary: str  # one line for listings
    paper: str = ""  # "arXiv:2303.14389"
    requires: tuple[str, ...] = ()  # distributions that must be installed to choose it
    extra: str = ""  # what pip installs for them, if not these names: "sddit[diffusers]"
    formats: tuple[tuple[str, str], ...] = ()  # (layout, "module:attribute") of converters of published weights
    checks: tuple[tuple[str, str], ...] = ()  # (what it shows, "module:function") for `sddit-run verify`
    origin: str = ""  # name of the plugin that registered it

    @property
    def qualified(self) -> str:
        return f"{self.origin}/{self.name}"

    def missing(self) -> list[str]:
        """Return the distributions of `requires` that are not installed, judged from metadata alone."""
        return [name for name in self.requires if not _installed(name)]

    def load(self) -> Callable[..., T]:
        """Import the factory. This is where torch is imported."""
        if not isinstance(self.factory, str):
            return self.factory
        factory: Callable[..., T] = load_attribute(self.factory)
        return factory

    def build(self, params: Params, **runtime: Any) -> T:
        """Build the component from its settings and run-time objects."""
        with component_boundary(self.qualified):
            return self.load()(params, **runtime)

    def format(self, layout: str) -> Any:
        """Return the converter for published weights in `layout`. Raises SdditError (SD-C441) if there is none."""
        layouts = dict(self.formats)
        if layout not in layouts:
            raise error("SD-C441", f"no weight layout {layout!r}", where=self.qualified, expect=one_of(layout, layouts))
        return load_attribute(layouts[layout])


@dataclass(frozen=True, slots=True)
class Selected(Generic[P]):
    """A component that a recipe selects, with its settings."""

    component: Component[Any]
    params: P

    def build(self, **runtime: Any) -> Any:
        return self.component.build(self.params, **runtime)

    def to_json(self, *, free: bool = True) -> dict[str, Any]:
        """Return name and settings; without `free`, only those that are part of the run id."""
        return {"name": self.component.qualified, **settings_json(self.params, free=free)}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured number, with the bound it must satisfy. NaN satisfies none."""

    what: str  # what was measured: "order of convergence, distance from 2"
    value: float
    tolerance: float
    relation: Literal["<=", ">="] = "<="

    @property
    def holds(self) -> bool:
        """Return whether the number satisfies its bound."""
        return self.value >= self.tolerance if self.relation == ">=" else self.value <= self.tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    """Machine and options of a check."""

    component: Component[Any] | None = None  # the one whose check it is, or the check itself if it belongs to none
    device: Literal["cpu", "cuda"] = "cpu"
    full: bool = False  # run the slow, complete version
    fixtures: tuple[Path, ...] = ()  # folders that may hold numbers of published implementations


class CheckSkipped(Exception):
    """Raised by a check that needs a file, a device or a compiler that is missing. The check counts as skipped."""


Check = Callable[[CheckContext], Iterable[Measurement]]
"""A numerical check. It is registered with its component, as `checks={"what it shows": "module:function"}`, or by the
hook `register_checks` if it belongs to none. It may yield one by one.
"""


@contextmanager
def component_boundary(component: str) -> Iterator[None]:
    """Note on an exception which component was called: a call with wrong arguments has no frame in its module."""
    try:
        yield
    except Exception as failure:
        failure.add_note(f"{COMPONENT_NOTE}{component}")
        raise


def component_of(failure: BaseException) -> str:
    """Return the qualified name of the component that `component_boundary` noted, or an empty string."""
    notes = [note for note in getattr(failure, "__notes__", ()) if note.startswith(COMPONENT_NOTE)]
    return notes[-1].removeprefix(COMPONENT_NOTE) if notes else ""


def load_attribute(path: str) -> Any:
    """Import and return the object at "package.module:attribute"."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
