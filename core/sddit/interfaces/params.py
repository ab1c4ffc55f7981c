"""Define the base class of all settings, and what they may read of the recipe they are used in. Torch-free.

A `...View` declares the part of the settings class `...Params` that components of other kinds may read. The classes
themselves cannot be named here: they derive from `Params`, whose methods take a `RecipeView`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from sddit.errors import Problem
from sddit.interfaces.facts import DataFacts, Needs, Shapes, Tap, ViewSpec

S = TypeVar("S", covariant=True)


class BackboneView(Protocol):
    @property
    def head_tokens(self) -> Mapping[str, Literal["all", "visible"]]: ...
    def grid(self, shapes: Shapes) -> tuple[int, int]: ...
    def width(self, tap: Tap) -> int: ...


class NoiseScheduleView(Protocol):
    @property
    def t_range(self) -> tuple[float, float]: ...
    @property
    def level_range(self) -> tuple[float, float]: ...


class PairSamplerView(Protocol):
    def views(self) -> tuple[ViewSpec, ...]: ...


class DatasetView(Protocol):
    @property
    def label_drop(self) -> float: ...
    def targets(self) -> Mapping[str, tuple[int, int, int]]: ...


class SamplerView(Protocol):
    @property
    def steps(self) -> int: ...
    @property
    def grid(self) -> str: ...
    @property
    def rho(self) -> float: ...
    @property
    def sigma_min(self) -> float | None: ...
    @property
    def sigma_max(self) -> float | None: ...


class LossView(Protocol):
    @property
    def views(self) -> tuple[str, ...]: ...
    @property
    def trains_network(self) -> bool: ...
    def needs(self) -> Needs: ...


class ComponentView(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def qualified(self) -> str: ...


class SlotView(Protocol[S]):
    """A selected component and its settings, see `Selected`."""

    @property
    def component(self) -> ComponentView: ...
    @property
    def params(self) -> S: ...


class TrainView(Protocol):
    """The part of `[train]` that components may read."""

    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...


class RecipeView(Protocol):
    """The recipe as `check`, `idle` and `warnings` of a component see it. Read-only."""

    @property
    def backbone(self) -> SlotView[BackboneView]: ...
    @property
    def noise_schedule(self) -> SlotView[NoiseScheduleView]: ...
    @property
    def pair_sampler(self) -> SlotView[PairSamplerView]: ...
    @property
    def dataset(self) -> SlotView[DatasetView]: ...
    @property
    def sampler(self) -> SlotView[SamplerView]: ...
    @property
    def losses(self) -> Mapping[str, SlotView[LossView]]:
        """Every loss by label, including those of constant weight 0."""

    @property
    def active_losses(self) -> Mapping[str, SlotView[LossView]]:
        """The losses that are built: all but those of constant weight 0."""

    @property
    def features(self) -> Mapping[str, SlotView[object]]:
        """The feature extractors that `[evaluate]` uses, by label or name."""

    @property
    def train(self) -> TrainView: ...
    @property
    def facts(self) -> DataFacts:
        """Image shape, classes and sizes of the data set."""

    @property
    def shapes(self) -> Shapes:
        """Input and output shapes of the backbone."""

    def views_of(self, loss: LossView) -> Sequence[ViewSpec]:
        """Return the views that `loss` reads."""

    def key_of(self, loss: LossView) -> str:
        """Return the key of `loss`, such as `loss.denoise`."""

    def has_heads(self) -> bool:
        """Return whether an active loss trains modules of its own. One that states no cost may."""


class Params(BaseModel):
    """Settings of one component: strict types, no unknown keys, finite numbers, every field described."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Yield what is wrong between this component and the other slots of the recipe. None by default."""
        return ()

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        """Yield names of own keys that have no effect in this recipe; a warning names those that are set."""
        return ()

    def warnings(self, recipe: RecipeView) -> Iterable[str]:
        """Yield one sentence for each combination that is allowed but probably a mistake, naming its keys."""
        return ()


Mark = Literal["free", "omit_default", "training_only"]
"""Mark of a key in `json_schema_extra`. free: it changes no number, so it is not part of the run id and may change on
resume. omit_default: a key of a later version; while it has its default, it is not part of the run id, so that earlier
ids stay. training_only: a key of a backbone that changes gradients, and not what the trained network computes.
"""

PLACE: dict[str, Any] = {"path": True, "free": True}
"""`json_schema_extra` of a path, relative to the recipe. The run id does not depend on the place, but on a hash of what
is there: the fingerprint of a data set, or the sha256 of weights.
"""


def is_marked(settings: type[BaseModel], key: str, mark: Mark) -> bool:
    """Return whether the field of a key, as a recipe writes it, has that mark."""
    field = _field(settings, key)
    return (
        field is not None and isinstance(field.json_schema_extra, Mapping) and bool(field.json_schema_extra.get(mark))
    )


def is_omitted_default(settings: type[BaseModel], key: str, value: Any) -> bool:
    """Return whether a key is marked `omit_default`, and its value, as JSON, is the default."""
    field = _field(settings, key)
    return field is not None and is_marked(settings, key, "omit_default") and bool(value == json_default(field))


def _field(settings: type[BaseModel], key: str) -> FieldInfo | None:
    return next((field for name, field in settings.model_fields.items() if key == (field.alias or name)), None)


def settings_json(settings: BaseModel, *, free: bool = True) -> dict[str, Any]:
    """Return settings as JSON; without `free`, only those that are part of the run id."""
    dumped = settings.model_dump(mode="json", by_alias=True)
    return dumped if free else _identity(settings, dumped)


def _identity(settings: BaseModel, dumped: Mapping[str, Any]) -> dict[str, Any]:
    model, kept = type(settings), dict(dumped)
    for name, field in model.model_fields.items():
        key, value = field.alias or name, getattr(settings, name)
        if is_marked(model, key, "free") or is_omitted_default(model, key, kept.get(key)):
            kept.pop(key, None)
        elif isinstance(value, BaseModel) and isinstance(kept.get(key), dict):
            kept[key] = _identity(value, kept[key])
    return kept


def json_default(field: FieldInfo) -> Any:
    """Return the default of `field` as JSON; None if it is required."""
    if field.is_required():
        return None
    return to_jsonable_python(field.get_default(call_default_factory=True), by_alias=True)
