"""Components and registries."""

from __future__ import annotations

import pytest
from pydantic import Field

from sddit.errors import Problem, SdditError
from sddit.interfaces import Component, LossParams, Needs, Params, SamplerParams, Want
from sddit.interfaces.component import load_attribute
from sddit.plugins.hookspecs import Registries
from sddit.plugins.registry import Registry


class MineParams(LossParams):
    sharpness: float = Field(1.0, gt=0, description="How sharp.")

    def needs(self) -> Needs:
        return Needs(Want(output=True))


class BareParams(LossParams):
    mute: int = 1


class Mine:
    def __init__(self, params: MineParams, *, width: int) -> None:
        self.params, self.width = params, width


@pytest.fixture
def losses() -> Registry[object]:
    registry: Registry[object] = Registry("losses", "loss", LossParams)
    registry.bound_to("ours").add("mine", Mine, params=MineParams, summary="One.")
    return registry


def refused(registry: Registry[object], name: str) -> Problem:
    with pytest.raises(SdditError) as caught:
        registry.usable(name, where="here")
    return caught.value.problems[0]


def test_a_component_is_found_by_its_name_or_with_its_plugin(losses: Registry[object]) -> None:
    found = losses.get("mine")
    assert (found.qualified, found.kind, found.origin) == ("ours/mine", "losses", "ours")
    assert losses.get("ours/mine") is found
    assert losses.names() == ["mine"]


def test_a_component_is_built_from_settings_and_run_time_objects(losses: Registry[object]) -> None:
    built = losses.get("mine").build(MineParams(sharpness=2.0), width=3)
    assert isinstance(built, Mine)
    assert (built.params.sharpness, built.width) == (2.0, 3)


def test_a_factory_is_imported_only_when_it_is_built(losses: Registry[object]) -> None:
    losses.add("late", "no.such.module:Thing", params=MineParams, summary="Two.")
    late = losses.usable("late")
    with pytest.raises(ModuleNotFoundError):
        late.load()
    assert load_attribute("fractions:Fraction").__name__ == "Fraction"


def test_an_unknown_name_gets_the_nearest(losses: Registry[object]) -> None:
    found = refused(losses, "mime")
    assert (found.code, found.where, found.expect) == ("SD-R110", "here", "one of mine   (did you mean 'mine'?)")
    assert refused(losses, "theirs/mine").code == "SD-R110"


def test_two_offers_of_a_name_are_an_error_at_use_and_never_a_winner(losses: Registry[object]) -> None:
    losses.bound_to("theirs").add("mine", Mine, params=MineParams, summary="Another.")
    assert losses.names() == ["ours/mine", "theirs/mine"]
    found = refused(losses, "mine")
    assert (found.code, found.expect) == ("SD-P202", "one of ours/mine or theirs/mine")
    assert losses.get("theirs/mine").summary == "Another."


def test_a_plugin_can_be_taken_back_whole(losses: Registry[object]) -> None:
    theirs = losses.bound_to("theirs")
    theirs.add("mine", Mine, params=MineParams, summary="Another.")
    theirs.add("more", Mine, params=MineParams, summary="More.")
    losses.drop("theirs")
    assert [c.qualified for c in losses] == ["ours/mine"]
    assert losses.get("mine").origin == "ours"


def test_a_missing_dependency_is_refused_from_metadata_alone(losses: Registry[object]) -> None:
    losses.add("heavy", "no.such:Thing", params=MineParams, summary="x", requires=("no-such-package", "pydantic"))
    assert losses.get("heavy").missing() == ["no-such-package"]  # listing it is not an error
    found = refused(losses, "heavy")
    assert (found.code, "pip install no-such-package" in found.fix) == ("SD-P210", True)


@pytest.mark.parametrize("params", [SamplerParams, Params, dict, MineParams(), None])
def test_settings_of_another_kind_are_refused(losses: Registry[object], params: object) -> None:
    with pytest.raises(TypeError, match=r"must be a subclass of sddit\.interfaces\.LossParams"):
        losses.add("wrong", Mine, params=params, summary="x")  # type: ignore[arg-type]


def test_every_setting_is_described(losses: Registry[object]) -> None:
    with pytest.raises(TypeError, match="lack a description: mute"):
        losses.add("bare", Mine, params=BareParams, summary="x")


def test_weight_layouts_are_found_by_name() -> None:
    component: Component[object] = Component(
        kind="backbones", name="n", factory=Mine, params=Params, summary="x", formats=(("dit", "fractions:Fraction"),)
    )
    assert component.format("dit").__name__ == "Fraction"
    with pytest.raises(SdditError, match="SD-C441"):
        component.format("did")


def test_every_registry_can_be_named_in_a_message() -> None:
    registries = Registries().all()
    assert all(kind == registry.kind for kind, registry in registries.items())
    assert [registry.singular for registry in registries.values()] == [
        "backbone",
        "noise schedule",
        "pair sampler",
        "loss",
        "sampler",
        "attention kernel",
        "guidance",
        "optimizer",
        "data set",
        "codec",
        "feature extractor",
        "tracker",
        "check",
    ]
