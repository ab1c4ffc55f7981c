"""Components and the registries they are added to. Knows no component and imports no torch."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sddit import interfaces as face
from sddit.errors import Problem, SdditError, error, one_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Component(Generic[T]):
    """What is known of a component before it is built. Nothing here needs torch."""

    kind: str  # the registry it is in: "losses"
    name: str  # the short name that a recipe writes
    factory: (
        str | Callable[..., T]
    )  # "package.module:attribute", imported only when built; a one-file plugin may give the class
    params: type[face.Params]  # its settings: types, defaults, bounds, descriptions
    summary: str  # one line for listings
    paper: str = ""  # "arXiv:2303.14389"
    requires: tuple[str, ...] = ()  # distributions that must be installed to choose it
    formats: tuple[tuple[str, str], ...] = ()  # (layout, "module:attribute") of converters of published weights
    checks: tuple[tuple[str, str], ...] = ()  # (what it shows, "module:function") for `sddit-run verify`
    origin: str = ""  # the plugin that registered it; filled in by the loader

    @property
    def qualified(self) -> str:
        return f"{self.origin}/{self.name}"

    def missing(self) -> list[str]:
        """The distributions of `requires` that are not installed, judged from metadata alone."""
        return [name for name in self.requires if not _installed(name)]

    def load(self) -> Callable[..., T]:
        """Import the factory. This is where torch is imported."""
        if not isinstance(self.factory, str):
            return self.factory
        factory: Callable[..., T] = load_attribute(self.factory)
        return factory

    def build(self, params: face.Params, **runtime: Any) -> T:
        """Build it from settings (what) and run-time objects (with what)."""
        with blaming(self.qualified):
            return self.load()(params, **runtime)

    def format(self, layout: str) -> Any:
        """The converter for published weights in `layout`."""
        layouts = dict(self.formats)
        if layout not in layouts:
            raise error("SD-C441", f"no weight layout {layout!r}", where=self.qualified, expect=one_of(layout, layouts))
        return load_attribute(layouts[layout])


@contextmanager
def blaming(component: str) -> Iterator[None]:
    """Note on an exception at whose boundary it was raised: a call that does not fit has no frame of the component's own."""
    try:
        yield
    except Exception as failure:
        failure.component = component  # type: ignore[attr-defined]
        raise


def load_attribute(path: str) -> Any:
    """The object at "package.module:attribute"."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class Registry(Generic[T]):
    """The components of one kind. Two offers of one name stay listed; using the bare name is then an error."""

    def __init__(self, kind: str, slot: str, params: type[face.Params]) -> None:
        self.kind = kind
        self.slot = slot
        self.params = params
        self._offers: dict[str, list[Component[T]]] = {}
        self._speaker = ""

    @property
    def singular(self) -> str:
        """The kind as a message names one of it."""
        return SINGULAR[self.kind]

    def speaking(self, origin: str) -> Registry[T]:
        """The same registry, attributing what is added next to `origin`."""
        self._speaker = origin
        return self

    def add(
        self,
        name: str,
        factory: str | Callable[..., T],
        *,
        params: type[face.Params],
        summary: str,
        paper: str = "",
        requires: tuple[str, ...] = (),
        formats: dict[str, str] | None = None,
        checks: dict[str, str] | None = None,
    ) -> None:
        """Offer a component.

        Args:
            name: what a recipe writes in `name = "..."`.
            factory: "package.module:attribute", called as `factory(params, **runtime)`; in a one-file plugin the class itself.
            params: its settings, a subclass of this kind's params class; every field needs a description.
            summary: one line for listings.
            paper: where it comes from, such as "arXiv:2403.17004".
            requires: names of distributions that must be installed.
            formats: {layout: "module:attribute"} of converters of published weights.
            checks: {what it shows: "module:function"} of numerical checks, each a `sddit.interfaces.Check`.
        """
        if not (isinstance(params, type) and issubclass(params, self.params)):
            raise TypeError(
                f"params of {self.singular} {name!r} must be a subclass of sddit.interfaces.{self.params.__name__}"
            )
        undescribed = [key for key, info in params.model_fields.items() if not info.description]
        if undescribed:
            raise TypeError(f"params of {self.singular} {name!r} lack a description: {', '.join(undescribed)}")
        component: Component[T] = Component(
            kind=self.kind,
            name=name,
            factory=factory,
            params=params,
            summary=summary,
            paper=paper,
            requires=requires,
            formats=tuple((formats or {}).items()),
            checks=tuple((checks or {}).items()),
            origin=self._speaker,
        )
        self._offers.setdefault(name, []).append(component)

    def drop(self, origin: str) -> None:
        """Take back everything `origin` added: a plugin that failed half-way leaves nothing behind."""
        self._offers = {
            name: kept for name, offers in self._offers.items() if (kept := [c for c in offers if c.origin != origin])
        }

    def __iter__(self) -> Iterator[Component[T]]:
        for name in sorted(self._offers):
            yield from self._offers[name]

    def names(self) -> list[str]:
        """Every name a recipe may write; clashing ones in their qualified form."""
        return [c.name if len(self._offers[c.name]) == 1 else c.qualified for c in self]

    def get(self, name: str, *, where: str = "") -> Component[T]:
        """Find `name` or `plugin/name`. Two offers of one bare name are an error here, at use."""
        plugin, _, short = name.rpartition("/")
        offers = [c for c in self._offers.get(short, []) if plugin in ("", c.origin)]
        if not offers:
            raise error(
                "SD-R110",
                f"no {self.singular} named {name!r}",
                where=where,
                got=name,
                expect=one_of(name, self.names()),
                fix=f"sddit-run show {self.kind}   lists them; a third-party one is used when the recipe's `plugins` name it",
            )
        if len(offers) > 1:
            choices = " or ".join(c.qualified for c in offers)
            raise error(
                "SD-P202",
                f"{self.singular} {name!r} is offered more than once",
                where=where,
                got=name,
                expect=f"one of {choices}",
                fix="write the plugin before the name",
            )
        return offers[0]

    def usable(self, name: str, *, where: str = "") -> Component[T]:
        """`get`, and refuse one whose optional dependency is missing."""
        component = self.get(name, where=where)
        if missing := component.missing():
            raise SdditError(
                Problem(
                    "SD-P210",
                    f"{self.singular} {name!r} needs {', '.join(missing)}",
                    where=where,
                    got="not installed",
                    expect="an installed package",
                    fix=f"pip install {' '.join(missing)}, or choose another {self.singular}",
                )
            )
        return component


SINGULAR = {
    "backbones": "backbone",
    "noise_schedules": "noise schedule",
    "pair_samplers": "pair sampler",
    "losses": "loss",
    "samplers": "sampler",
    "attention": "attention kernel",
    "guidances": "guidance",
    "optimizers": "optimizer",
    "datasets": "data set",
    "features": "feature extractor",
    "trackers": "tracker",
}
