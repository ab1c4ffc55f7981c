"""Hold the components of each kind, by name. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from pydantic import ValidationError

from sddit import interfaces as face
from sddit.errors import error, one_of
from sddit.interfaces import Component

T = TypeVar("T")

SINGULAR = {"attention": "attention kernel", "dataset": "data set", "features": "feature extractor"}
"""{slot: word for one of its components}, where that is not the slot's own name."""


class Registry(Generic[T]):
    """The components of one kind. Two of one name are both listed; using the bare name is then an error."""

    def __init__(self, kind: str, slot: str, params: type[face.Params]) -> None:
        self.kind = kind
        self.slot = slot
        self.singular = SINGULAR.get(slot, slot.replace("_", " "))
        self.params = params
        self.origin = ""
        self._offers: dict[str, list[Component[T]]] = {}

    def bound_to(self, origin: str) -> Registry[T]:
        """Return the same registry as the plugin `origin` sees it: what is added through it has that origin."""
        bound: Registry[T] = Registry(self.kind, self.slot, self.params)
        bound.origin, bound._offers = origin, self._offers
        return bound

    def add(
        self,
        name: str,
        factory: str | Callable[..., T],
        *,
        params: type[face.Params],
        summary: str,
        paper: str = "",
        requires: tuple[str, ...] = (),
        extra: str = "",
        formats: dict[str, str] | None = None,
        checks: dict[str, str] | None = None,
    ) -> None:
        """Offer a component.

        Args:
            name: what a recipe writes in `name = "..."`.
            factory: "package.module:attribute", called as `factory(params, **runtime)`; in a one-file plugin the class
                itself.
            params: its settings, a subclass of this kind's params class; every field needs a description.
            summary: one line for listings.
            paper: where it comes from, such as "arXiv:2403.17004".
            requires: names of distributions that must be installed.
            extra: what pip installs for them, such as "sddit-acme[hub]"; empty: their names.
            formats: {layout: "module:attribute"} of converters of published weights.
            checks: {what it shows: "module:function"} of numerical checks, each a `sddit.interfaces.Check`.
        """
        if not (isinstance(params, type) and issubclass(params, self.params)):
            raise TypeError(
                f"params of {self.singular} {name!r} must be a subclass of sddit.interfaces.{self.params.__name__}"
            )
        undescribed = [key for key, info in params.model_fields.items() if not info.description]
        if undescribed:
            raise TypeError(
                f"params of {self.singular} {name!r} lack a description: {', '.join(undescribed)}; "
                'set it with Field(..., description="...")'
            )
        if outside := list(invalid_defaults(params)):
            raise TypeError(f"params of {self.singular} {name!r} have a default that they refuse: {', '.join(outside)}")
        if any(offer.origin == self.origin for offer in self._offers.get(name, ())):
            raise TypeError(f"{self.singular} {name!r} is registered twice; give one of them another name")
        component: Component[T] = Component(
            kind=self.kind,
            name=name,
            factory=factory,
            params=params,
            summary=summary,
            paper=paper,
            requires=requires,
            extra=extra,
            formats=tuple((formats or {}).items()),
            checks=tuple((checks or {}).items()),
            origin=self.origin,
        )
        self._offers.setdefault(name, []).append(component)

    def drop(self, origin: str) -> None:
        """Remove everything `origin` added, such as after a plugin failed half-way."""
        for offers in self._offers.values():
            offers[:] = [component for component in offers if component.origin != origin]

    def __iter__(self) -> Iterator[Component[T]]:
        for name in self._offers if self.kind == "checks" else sorted(self._offers):  # checks run as registered
            yield from self._offers[name]

    def names(self) -> list[str]:
        """Return every name a recipe may write; ambiguous ones in their qualified form."""
        return [c.name if len(self._offers[c.name]) == 1 else c.qualified for c in self]

    def get(self, name: str, *, where: str = "") -> Component[T]:
        """Return the component `name` or `plugin/name`.

        Raises SdditError (SD-R110, SD-P202) if there is none, or several.
        """
        plugin, _, short = name.rpartition("/")
        offers = [c for c in self._offers.get(short, []) if plugin in ("", c.origin)]
        if not offers:
            raise error(
                "SD-R110",
                f"no {self.singular} named {name!r}",
                where=where,
                got=name,
                expect=one_of(name, self.names()),
                fix=f"sddit-run show {self.kind}   lists them; a third-party one is used when the recipe's "
                "`plugins` lists it",
            )
        if len(offers) > 1:
            choices = " or ".join(c.qualified for c in offers)
            raise error(
                "SD-P202",
                f"{self.singular} {name!r} is offered more than once",
                where=where,
                got=name,
                expect=f"one of {choices}",
            )
        return offers[0]

    def usable(self, name: str, *, where: str = "") -> Component[T]:
        """Return `get(name)`. Raises SdditError (SD-P210) if an optional dependency is missing."""
        component = self.get(name, where=where)
        if missing := component.missing():
            wanted = f'"{component.extra}"' if component.extra else " ".join(missing)
            raise error(
                "SD-P210",
                f"{self.singular} {name!r} needs {', '.join(missing)}",
                where=where,
                got="not installed",
                expect="an installed package",
                fix=f"pip install {wanted}, or choose another {self.singular}",
            )
        return component


def invalid_defaults(params: type[face.Params]) -> Iterator[str]:
    """Yield the defaults that are outside of the bounds of their own setting, which pydantic does not check."""
    for key, info in params.model_fields.items():
        if info.is_required() or info.default_factory is not None:
            continue
        name = info.alias or key
        try:
            params.model_validate({name: info.default})
        except ValidationError as refused:
            if any(one["loc"][:1] == (name,) for one in refused.errors()):
                yield f"{key} = {info.default!r}"
