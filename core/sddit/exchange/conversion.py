"""Weights in a published layout as a network of ours, and a network of ours in a published layout."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

import torch
from torch import Tensor, nn

from sddit.errors import Problem, SdditError, error, one_of, raise_all
from sddit.exchange.arguments import flat, together, without
from sddit.exchange.layouts import layouts
from sddit.interfaces import Attention, BackboneParams, Shapes, WeightDescription, WeightFormat
from sddit.plugins.host import registry
from sddit.plugins.registry import Component
from sddit.recipes.recipe import Recipe
from sddit.recipes.validation import validated
from sddit.training.warm_start import misfits

SAME_TABLE = 1e-4
"""How far a fixed table in a file may be from ours: the official code rounds it to float32 on another way."""


def same_table(stored: torch.dtype) -> float:
    """The same for a table stored in fewer bits, whose values are at most 1: the step between numbers there."""
    return max(SAME_TABLE, torch.finfo(stored).eps) if stored.is_floating_point else SAME_TABLE


def unused(*given: Any, **more: Any) -> Tensor:
    """The attention kernel of a network that is only looked at."""
    raise RuntimeError("this network was built without an attention kernel")


@dataclass(frozen=True, slots=True)
class Published:
    """A network of a published layout in our terms, with the tensors under our names."""

    layout: str
    component: Component[Any]  # the backbone that offers the layout
    params: BackboneParams
    description: WeightDescription
    config: dict[str, Any]  # all arguments of its constructor
    told: dict[str, Any]  # those of them that the tensors tell
    guessed: dict[str, Any]  # those that neither the tensors nor anybody told
    state: dict[str, Tensor]

    @property
    def shapes(self) -> Shapes:
        return self.description.shapes

    @property
    def undropped(self) -> bool:
        """Whether it was trained without dropped labels: its null label means nothing."""
        return bool(self.description.recipe.get("dataset", {}).get("label_drop") == 0)

    def backbone(self, device: str = "cpu", attention: Attention = unused) -> nn.Module:
        """The network, untrained; on the device `meta` it takes no memory. Without a kernel it can be looked at, not run."""
        with torch.device(device):
            made: nn.Module = self.component.build(
                self.params,
                image=self.shapes.image,
                num_classes=self.shapes.num_classes,
                outputs=self.shapes.outputs,
                attention=attention,
            )
        return made

    def trained(self, attention: Attention = unused) -> nn.Module:
        """The network with its weights, and with the fixed tables of the file where it has them, in the default dtype."""
        backbone = self.backbone(attention=attention)
        backbone.load_state_dict({name: tensor.to(torch.get_default_dtype()) for name, tensor in self.state.items()})
        return backbone.eval()

    def parameters(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the network. Its fixed tables are ours then: SD-C455 for others than these."""
        trained, ours = self.trained(), dict(self.backbone().named_buffers())
        for name, table in trained.named_buffers():
            allowed = same_table(self.state[name].dtype) if name in self.state else SAME_TABLE
            if (off := float((table - ours[name]).abs().max())) > allowed:
                what = f"the fixed table {name!r} of these weights is not ours"
                raise error("SD-C455", what, where=name, got=f"up to {off:.2g} apart", expect=f"at most {allowed:g}")
        return trained.state_dict()


def offering(layout: str) -> Component[Any]:
    """The backbone that offers a layout. SD-C441 if none does."""
    known = layouts()
    if layout not in known:
        raise error(
            "SD-C441",
            f"no weight layout {layout!r}",
            where="--layout",
            got=layout or "(none given)",
            expect=one_of(layout, known),
        )
    return known[layout]


def understood(state: Mapping[str, Tensor], layout: str, given: Mapping[str, Any]) -> Published:
    """Tensors of a published layout in our terms; only their names and shapes are looked at.

    Args:
        state: under the published names.
        layout: such as `sddit-run import --layout` lists.
        given: arguments of the published constructor, above what the tensors tell.

    Raises:
        SdditError: SD-C454 for arguments that are missing, wrong or at odds with the tensors, SD-C455 for tensors that are
            not of this layout or of this network.
    """
    component = offering(layout)
    form: WeightFormat = component.format(layout)
    try:
        told, usual = form.infer(state, given)
        ours = form.to_ours(state, given)
    except (KeyError, ValueError, IndexError) as unknown:
        raise error(
            "SD-C455",
            f"these tensors are not of the layout {layout!r}",
            where="--layout",
            got=_said(unknown),
            expect=f"another file, or one of the layouts {', '.join(sorted(layouts()))}",
        ) from unknown
    _refuse_contradictions(given, told)
    guessed = without(usual, given)
    config = together(guessed, told, given)
    try:
        description = form.describe(config)
        params = cast(BackboneParams, validated(component.params, description.backbone, table="config"))
        whole = form.config(params, description.shapes, (description.noise_schedule or ("", {}))[1])
    except (KeyError, ValueError, TypeError) as unfit:
        raise _bad_config(_said(unfit)) from unfit
    except SdditError as unfit:
        raise _bad_config(unfit.problems[0].what) from unfit
    _refuse_unused(given, whole, but={*form.idle, *flat(told)})
    published = Published(layout, component, params, description, whole, told, guessed, ours)
    _refuse_other_tensors(published)
    return published


def written(recipe: Recipe, layout: str, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A backbone of ours as constructor's arguments and tensors of a published layout. It comes back as it went, or is refused.

    Raises SD-C453 for a network that has no place in the layout.
    """
    component = offering(layout)
    if component.qualified != recipe.backbone.component.qualified:
        raise _no_place(
            layout, f"it holds backbones {component.qualified!r}, and this is {recipe.backbone.component.qualified!r}"
        )
    form: WeightFormat = component.format(layout)
    try:
        config = form.config(
            recipe.backbone.params, recipe.shapes, recipe.noise_schedule.params.model_dump(by_alias=True)
        )
        theirs = form.to_theirs(state, recipe.backbone.params, recipe.shapes)
    except (KeyError, ValueError) as unfit:
        raise _no_place(layout, _said(unfit)) from unfit
    back = understood(theirs, layout, config)
    if reason := unlike(recipe, back):
        raise _no_place(layout, reason)
    if changed := [name for name, tensor in state.items() if not torch.equal(back.state[name], tensor)]:
        raise _no_place(layout, f"{changed[0]} would not come back")
    return config, theirs


def unlike(recipe: Recipe, published: Published) -> str:
    """The first thing in which the model of a recipe is another than a published one; empty: none."""
    if reason := unlike_network(recipe, published):
        return reason
    if published.description.noise_schedule is None:
        return ""
    name, settings = published.description.noise_schedule
    if registry("noise_schedules").get(name) != recipe.noise_schedule.component:
        return f"noise_schedule.name = {recipe.noise_schedule.component.name}, not {name}"
    own = recipe.noise_schedule.params.model_dump(by_alias=True)
    if reason := _unlike_settings({key: own.get(key) for key in settings}, settings, "noise_schedule"):
        return reason
    if published.undropped and recipe.dataset.params.label_drop:
        return f"dataset.label_drop = {recipe.dataset.params.label_drop:g}, not 0"
    return ""


def unlike_network(recipe: Recipe, published: Published) -> str:
    """The same of the network alone, whatever noise it was trained with.

    A size by name and the same size by numbers are alike: they set different keys, and only keys that both set are compared.
    """
    if recipe.backbone.component.qualified != published.component.qualified:
        return f"backbone.name = {recipe.backbone.component.qualified}, not {published.component.qualified}"
    for name in ("image", "num_classes", "outputs"):
        ours, theirs = getattr(recipe.shapes, name), getattr(published.shapes, name)
        if ours != theirs:
            return f"{name.replace('_', ' ')} = {ours}, not {theirs}"
    return _unlike_settings(
        recipe.backbone.params.model_dump(by_alias=True), published.params.model_dump(by_alias=True), "backbone"
    )


def _unlike_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any], table: str) -> str:
    for key, value in ours.items():
        other = theirs.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            if inner := _unlike_settings(value, other, f"{table}.{key}"):
                return inner
        elif value != other and value not in (None, "") and other not in (None, ""):
            return f"{table}.{key} = {value}, not {other}"
    return ""


def _refuse_contradictions(given: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    known = flat(told)
    raise_all(
        Problem(
            "SD-C454",
            f"the config and the tensors say different things of {key!r}",
            where="--config",
            got=f"{key} = {value}",
            expect=f"{known[key]}, as the tensors have it",
            fix="leave it out",
        )
        for key, value in flat(given).items()
        if key in known and known[key] != value
    )


def _refuse_unused(given: Mapping[str, Any], whole: Mapping[str, Any], but: Collection[str]) -> None:
    """An argument that looks like a misspelt one was meant to change something; others do not concern the network.

    `but` those that leave the network as it is, and those that the tensors confirm.
    """
    known, stated = flat(whole), flat(given)
    problems = []
    for key, value in stated.items():
        if key in but:
            continue
        if key not in known and get_close_matches(key, set(known) - set(stated), cutoff=0.8):
            what, expect = f"the config has no use for {key!r}", one_of(key, known, most=20)
        elif key in known and known[key] != value:
            what, expect = f"this network cannot be made with {key!r} so", f"{key} = {known[key]}"
        else:
            continue
        problems.append(Problem("SD-C454", what, where="--config", got=f"{key} = {value}", expect=expect))
    raise_all(problems)


def _refuse_other_tensors(published: Published) -> None:
    """Names and shapes are those of the network that the arguments make; fixed tables come along or not."""
    network = published.backbone("meta")
    wanted, fixed = network.state_dict(), dict(network.named_buffers())
    given = {name: tensor for name, tensor in published.state.items() if name in wanted or name not in fixed}
    if unlike := misfits(given, wanted):
        what, names = next(iter(unlike.items()))
        raise error(
            "SD-C455",
            "the tensors are not those of the network that the config describes",
            where=f"--layout {published.layout}",
            got=f"{what.partition(',')[0]}: {', '.join(names[:3])}",
            expect="the layout and the config of these weights",
        )


def _bad_config(reason: str) -> SdditError:
    return error(
        "SD-C454",
        "the config does not make a network",
        where="--config",
        got=reason,
        expect="the arguments of the published constructor that the tensors do not tell",
        fix="such as --config num_heads=16",
    )


def _no_place(layout: str, reason: str) -> SdditError:
    return error(
        "SD-C453",
        f"this network has no place in the layout {layout!r}",
        where="--layout",
        got=reason,
        expect="a network as that layout's own implementation makes it",
        fix="--layout ours holds every network",
    )


def _said(failure: Exception) -> str:
    """What an exception says; of a KeyError, which quotes, the text itself."""
    if isinstance(failure, KeyError):
        key = str(failure.args[0])
        return key if " " in key else f"{key} is missing"
    return str(failure)
