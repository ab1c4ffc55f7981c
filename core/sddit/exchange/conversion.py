"""Convert weights from a published layout to our parameter names, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

import torch
from pydantic import BaseModel
from torch import Tensor

from sddit.backbones import Backbone
from sddit.errors import Problem, SdditError, error, one_of, raise_all
from sddit.exchange.layouts import NO_LABEL_DROP, flatten, layouts, merge_tables
from sddit.exchange.number_types import exact_floats, refuse_other_types, spacing, type_name
from sddit.exchange.wrappers import UNREADABLE, find_network
from sddit.interfaces import Attention, BackboneParams, Component, Shapes, WeightDescription, WeightFormat
from sddit.interfaces.params import is_marked
from sddit.plugins.host import registry
from sddit.recipes.field_types import nested_settings
from sddit.recipes.recipe import Recipe
from sddit.recipes.validation import validated
from sddit.storage.tensors import non_finite
from sddit.training.warm_start import misfits

TABLE_TOLERANCE = 1e-4
"""Largest difference between a fixed table in a file and ours: the official code rounds it differently to float32."""


def no_attention(*inputs: Any, **more: Any) -> Tensor:
    """Stand in for the attention kernel of a network that is inspected but not run."""
    raise RuntimeError("this network was built without an attention kernel")


@dataclass(frozen=True, slots=True)
class ConvertedWeights:
    """Weights of a published layout under our parameter names, with the settings of their network."""

    layout: str
    component: Component[Any]  # the backbone that offers the layout
    params: BackboneParams
    description: WeightDescription
    config: dict[str, Any]  # all arguments of the published constructor
    inferred: dict[str, Any]  # those that follow from names and shapes of the tensors
    guessed: dict[str, Any]  # {dotted key: usual value} of those that neither the tensors nor the user state
    state: dict[str, Tensor]
    set_name: str = ""  # the prefix that chose these tensors among others; empty: all tensors
    notes: tuple[str, ...] = ()  # what was renamed, dropped and converted

    @property
    def shapes(self) -> Shapes:
        return self.description.shapes

    @property
    def never_drops_labels(self) -> bool:
        """Return whether it was trained without label dropout, so that its null label is untrained."""
        return bool(self.description.recipe.get("dataset", {}).get("label_drop") == 0)

    def lines(self, notes: Iterable[str]) -> list[str]:
        """Return which arguments follow from the tensors, which were guessed, and `notes`, one line each."""
        groups = {"from the tensors": flatten(self.inferred), "guessed": self.guessed}
        found = [f"{title}: {_assignments(values)}" for title, values in groups.items() if values]
        return [*found, *notes, *([f"note: {NO_LABEL_DROP}"] if self.never_drops_labels else [])]

    def build_backbone(self, device: str = "cpu", attention: Attention = no_attention) -> Backbone:
        """Build the network with fresh weights; on device `meta` it takes no memory. Without a kernel it cannot run."""
        with torch.device(device):
            backbone: Backbone = self.component.build(
                self.params,
                image=self.shapes.image,
                num_classes=self.shapes.num_classes,
                outputs=self.shapes.outputs,
                attention=attention,
            )
        return backbone

    def build_trained(self, attention: Attention = no_attention) -> Backbone:
        """Build the network with its weights, and with the file's fixed tables if it has them, in the default dtype."""
        backbone, dtype = self.build_backbone(attention=attention), torch.get_default_dtype()
        if bad := non_finite(self.state):
            fix = "download or convert the file again; a network with such weights samples nothing"
            raise error("SD-C450", f"non-finite values in {bad}", where=bad, expect="finite numbers", fix=fix)
        values = {name: tensor.to(dtype) for name, tensor in self.state.items()}
        if large := non_finite(values):
            what = f"a value of {large!r} is too large for {type_name(dtype)}"
            got = f"{self.state[large].abs().max():.3g} in {type_name(self.state[large].dtype)}"
            raise error("SD-C458", what, where=large, got=got, expect=f"at most {torch.finfo(dtype).max:.3g}")
        backbone.load_state_dict(values)
        return backbone.eval()

    def parameters(self) -> dict[str, Tensor]:
        """Return the tensors of the network for a checkpoint. Raises SD-C455 if a fixed table differs from ours."""
        trained, ours = self.build_trained(), dict(self.build_backbone().named_buffers())
        for name, table in trained.named_buffers():
            allowed = TABLE_TOLERANCE
            if name in self.state and self.state[name].is_floating_point():
                allowed = max(allowed, spacing(self.state[name]))
            if (gap := float((table - ours[name]).abs().max())) > allowed:
                what = f"the fixed table {name!r} of these weights differs from ours"
                raise error(
                    "SD-C455", what, where=name, got=f"maximum difference {gap:.2g}", expect=f"at most {allowed:g}"
                )
        return trained.state_dict()


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def backbone_with_layout(layout: str) -> Component[Any]:
    """Return the backbone component that offers a layout. Raises SD-C441 if none does."""
    known = layouts()
    if layout not in known:
        raise error(
            "SD-C441",
            f"unknown weight layout {layout!r}",
            where="--layout",
            got=layout or "(empty)",
            expect=one_of(layout, known),
        )
    return known[layout]


def convert_from_layout(
    state: Mapping[str, Tensor], layout: str, given: Mapping[str, Any], where: str = "--layout"
) -> ConvertedWeights:
    """Convert tensors of a published layout. Only their names, shapes and types are inspected.

    Args:
        state: tensors under the published names, which may have the prefixes of wrappers.
        layout: a layout that `sddit-run import --help` lists.
        given: arguments of the published constructor; they override guessed ones.
        where: the file, for messages.

    Raises:
        SdditError: SD-C454 for arguments that are missing, wrong or contradict the tensors, SD-C455 for tensors that
            do not fit this layout or this network, SD-C458 for tensors of another type than real numbers, SD-C459 and
            SD-C446 as `find_network` does.
    """
    component = backbone_with_layout(layout)
    form: WeightFormat = component.format(layout)

    def read(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
        return *form.infer(tensors, given), form.to_ours(tensors, given)

    _refuse_empty(state, where)
    exact, converted_types = exact_floats(state)
    try:
        found = find_network(exact, read, where)
    except UNREADABLE as unknown:
        raise error(
            "SD-C455",
            f"these tensors do not have the layout {layout!r}",
            where="--layout",
            got=_reason(unknown),
            expect=f"another file, or one of the layouts {', '.join(sorted(layouts()))}",
            fix=_other_layout(exact, layout, given),
        ) from unknown
    inferred, usual, ours = found.content
    refuse_other_types(ours, where)
    _refuse_contradictions(given, inferred)
    stated = flatten(given)
    guessed = {key: value for key, value in flatten(usual).items() if key not in stated}
    config = merge_tables(usual, inferred, given)
    try:
        description = form.describe(config)
        params = cast(BackboneParams, validated(component.params, description.backbone, table="config"))
        complete = form.config(params, description.shapes, (description.noise_schedule or ("", {}))[1])
    except (KeyError, ValueError, TypeError, SdditError) as unfit:
        raise error(
            "SD-C454",
            "the config does not describe a network",
            where="--config",
            got=_reason(unfit),
            expect="the arguments of the published constructor that do not follow from the tensors",
            fix="add them, e.g. --config num_heads=16",
        ) from unfit
    _refuse_unused(given, complete, allowed={*form.idle, *flatten(inferred)})
    facts = (layout, component, params, description, complete, inferred, guessed, ours)
    converted = ConvertedWeights(*facts, found.set_name, (*found.notes, *converted_types))
    _refuse_misfits(converted, lambda: _other_layout(exact, layout, given))
    return converted


def convert_to_layout(
    recipe: Recipe, layout: str, state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert our backbone to the arguments and tensors of a published layout, and check that they convert back.

    Auxiliary heads are dropped: no published layout has a place for them. Raises SD-C453 for a network that the layout
    cannot represent.
    """
    component = backbone_with_layout(layout)
    form: WeightFormat = component.format(layout)
    chosen, schedule = recipe.backbone, recipe.noise_schedule.params.model_dump(by_alias=True)
    state = without_heads(state, recipe)
    try:
        if component.qualified != chosen.component.qualified:
            raise ValueError(
                f"it is for the backbone {component.qualified!r}, and this one is {chosen.component.qualified!r}"
            )
        config = form.config(chosen.params, recipe.shapes, schedule)
        theirs = form.to_theirs(state, chosen.params, recipe.shapes)
        back = convert_from_layout(theirs, layout, config)
        if reason := model_mismatch(recipe, back):
            raise ValueError(reason)
        if changed := [name for name, tensor in state.items() if not torch.equal(back.state[name], tensor)]:
            raise ValueError(f"{changed[0]} would change when it is converted back")
    except (KeyError, ValueError) as unfit:
        raise error(
            "SD-C453",
            f"the layout {layout!r} cannot hold this network",
            where="--layout",
            got=_reason(unfit),
            expect="a network that the layout's own implementation can build",
        ) from unfit
    return config, theirs


def without_heads(state: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """Return the tensors of a network without those of its auxiliary heads."""
    return {name: tensor for name, tensor in state.items() if not recipe.backbone.params.is_of_head(name)}


def model_mismatch(recipe: Recipe, converted: ConvertedWeights) -> str:
    """Return the first difference between a recipe's model and converted weights; empty if they match."""
    ours, theirs = recipe.backbone.component.qualified, converted.component.qualified
    if ours != theirs:
        return f"backbone.name = {ours}, not {theirs}"
    for name in ("image", "num_classes", "outputs"):
        own, other = getattr(recipe.shapes, name), getattr(converted.shapes, name)
        if own != other:
            return f"{name.replace('_', ' ')} = {own}, not {other}"
    # A size by name matches the same size by numbers: they set different keys, and only common keys are compared.
    network, schedule = recipe.backbone.params.model_dump(by_alias=True), converted.description.noise_schedule
    params = type(recipe.backbone.params)
    reason = _settings_mismatch(network, converted.params.model_dump(by_alias=True), "backbone", params)
    if reason or schedule is None:
        return reason
    name, settings = schedule
    if registry("noise_schedules").get(name) != recipe.noise_schedule.component:
        return f"noise_schedule.name = {recipe.noise_schedule.component.name}, not {name}"
    own = recipe.noise_schedule.params.model_dump(by_alias=True)
    if reason := _settings_mismatch({key: own.get(key) for key in settings}, settings, "noise_schedule"):
        return reason
    if converted.never_drops_labels and recipe.dataset.params.label_drop:
        return f"dataset.label_drop = {recipe.dataset.params.label_drop:g}, not 0"
    return ""


def _settings_mismatch(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], table: str, settings: type[BaseModel] | None = None
) -> str:
    """Return the first setting that both state with another value. Those marked `training_only` in `settings` may."""
    for key, value in ours.items():
        other = theirs.get(key)
        if settings is not None and is_marked(settings, key, "training_only"):
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            inside = nested_settings(settings, key) if settings else None
            if inner := _settings_mismatch(value, other, f"{table}.{key}", inside):
                return inner
        elif value != other and value not in (None, "") and other not in (None, ""):
            return f"{table}.{key} = {value}, not {other}"
    return ""


def _refuse_empty(state: Mapping[str, Tensor], where: str) -> None:
    if empty := [name for name, tensor in state.items() if not tensor.numel()]:
        what, got = "a tensor of this file is empty", f"{empty[0]} {list(state[empty[0]].shape)}"
        raise error("SD-C455", what, where=where, got=got, expect="the weights of a network", fix="save them again")


def _refuse_contradictions(given: Mapping[str, Any], inferred: Mapping[str, Any]) -> None:
    known = flatten(inferred)
    raise_all(
        Problem(
            "SD-C454",
            f"the config contradicts the tensors in {key!r}",
            where="--config",
            got=f"{key} = {value}",
            expect=f"{known[key]}, as in the tensors",
            fix="remove it",
        )
        for key, value in flatten(given).items()
        if key in known and known[key] != value
    )


def _refuse_unused(given: Mapping[str, Any], complete: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Refuse arguments without effect that look like a misspelt key. Others do not concern the network.

    `allowed`: keys that leave the network as it is, and keys that the tensors confirm.
    """
    known, stated = flatten(complete), flatten(given)
    problems = []
    for key, value in stated.items():
        if key in allowed:
            continue
        if key not in known and get_close_matches(key, set(known) - set(stated), cutoff=0.8):
            what, expect = f"unknown config key {key!r}", one_of(key, known, max_names=20)
        elif key in known and known[key] != value:
            what, expect = f"this network cannot have this value of {key!r}", f"{key} = {known[key]}"
        else:
            continue
        problems.append(Problem("SD-C454", what, where="--config", got=f"{key} = {value}", expect=expect))
    raise_all(problems)


def _other_layout(state: Mapping[str, Tensor], layout: str, given: Mapping[str, Any]) -> str:
    """Return how to name another layout that reads these tensors as they are; empty if there is none."""
    for name, component in sorted(layouts().items()):
        form: WeightFormat = component.format(name)
        try:
            if name != layout:
                form.infer(state, given)
                form.to_ours(state, given)
                return f"--layout {name}, which has these names"
        except UNREADABLE:
            continue
    return ""


def _refuse_misfits(converted: ConvertedWeights, fix: Callable[[], str]) -> None:
    """Raise SD-C455 unless names and shapes match the network of the arguments; fixed tables are optional.

    `fix` returns how to correct it; empty: not known.
    """
    network = converted.build_backbone("meta")
    wanted, fixed = network.state_dict(), dict(network.named_buffers())
    given = {name: tensor for name, tensor in converted.state.items() if name in wanted or name not in fixed}
    if mismatches := misfits(given, wanted):
        what, names = next(iter(mismatches.items()))
        raise error(
            "SD-C455",
            "the tensors do not fit the network that the config describes",
            where=f"--layout {converted.layout}",
            got=f"{what.partition(',')[0]}: {', '.join(names[:3])}",
            expect="the layout and the config of these weights",
            fix=fix(),
        )


def _reason(failure: Exception) -> str:
    """Return an exception's message; for a KeyError, which quotes its text, the text itself."""
    if isinstance(failure, SdditError):
        return failure.problems[0].what
    if isinstance(failure, KeyError):
        key = str(failure.args[0])
        return key if " " in key else f"{key} is missing"
    return str(failure)
