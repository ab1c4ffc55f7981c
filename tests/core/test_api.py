"""The functions for Python refuse wrong arguments with the messages of the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sddit
from sddit.diffusion.draws import KeyedDraws
from sddit.errors import SdditError
from sddit.plugins.host import Host
from sddit.progress import Progress
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run


@pytest.fixture
def model(toy_recipe: Path, tmp_path: Path) -> sddit.Model:
    recipe = resolve(toy_recipe, ["train.steps=1", "evaluate.features=[]", "evaluate.previews=0"])
    return sddit.load(run(recipe, out=tmp_path / "runs", device="cpu", progress=Progress()).folder)


def test_the_public_names_are_listed() -> None:
    assert dir(sddit) == sorted([*sddit.__all__, "__version__"])
    assert not {"HEAVY", "Any", "TYPE_CHECKING"} & {*dir(sddit)}


def test_classes_are_given_by_name_number_or_text(model: sddit.Model) -> None:
    def drawn(classes: Any, **more: Any) -> torch.Tensor:
        return sddit.sample(model, classes=classes, per_class=1, steps=2, **more)

    wanted = drawn([0, 2])
    for classes in (["class 0", "class 2"], "class 0,CLASS 2", "0,2", torch.tensor([0, 2]), (0, "class 2")):
        assert torch.equal(drawn(classes, device=torch.device("cpu"), overrides="sampler.rho=7.0"), wanted)
    assert torch.equal(drawn(2), wanted[1:])
    assert not torch.equal(wanted[:1], wanted[1:])
    assert len(drawn(None)) == 3


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown name": ({"classes": ["cat"]}, "SD-T921"),
    "unknown number": ({"classes": [7]}, "SD-T904"),
    "a fraction": ({"classes": [0.9]}, r"SD-T925(.|\n)*0\.9 \(float\)"),
    "no class": ({"classes": []}, "SD-T925"),
    "no images": ({"per_class": 0}, r"SD-T925(.|\n)*per_class = 0(.|\n)*from 1 to 10,000"),
    "true": ({"per_class": True}, "SD-T925"),
    "a text": ({"per_class": "8"}, "SD-T925"),
    "too many": ({"per_class": 10**6}, "SD-T925"),
    "seed below": ({"seed": -1}, "SD-T925"),
    "seed above": ({"seed": 2**63}, "SD-T925"),
    "seed fraction": ({"seed": 1.5}, "SD-T925"),
    "one step": ({"steps": 1}, "SD-T925"),
    "no device": ({"device": "gpu"}, "SD-R162"),
    "device number": ({"device": 0}, "SD-T925"),
    "overrides": ({"overrides": [3]}, "SD-T925"),
    "unknown sampler": ({"sampler": "toi"}, "SD-R110"),
    "sampler number": ({"sampler": 3}, "SD-T925"),
    "noise a list": ({"noise": [0.0]}, r"SD-T925(.|\n)*noise holds no such images"),
    "noise of another size": ({"noise": torch.zeros(24, 1, 4, 4)}, r"SD-T925(.|\n)*noise holds no such images"),
    "latents a text": ({"latents": "yes"}, r"SD-T925(.|\n)*latents is neither True nor False"),
    "guidance text": ({"guidance": "2"}, r"SD-T925(.|\n)*guidance is not a number"),
    "guidance NaN": ({"guidance": float("nan")}, "SD-T925"),
    "no guidance": ({"guidance": 2.0}, "SD-T923"),
    "no overrides": ({"overrides": None}, "SD-T925"),
    "another network": ({"overrides": "backbone.hidden=4"}, "SD-T925(.|\n)*cannot change after training"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named(model: sddit.Model, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SdditError, match=words):
        sddit.sample(model, **arguments)


def test_an_unknown_home_folder_is_named_as_on_the_command_line() -> None:
    with pytest.raises(SdditError, match=r"SD-F707(.|\n)*where:  source(.|\n)*~no-such-user"):
        sddit.load("~no-such-user/runs")


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: sddit.sample("runs/toy"),  # type: ignore[arg-type]
        lambda model: sddit.load(""),
        lambda model: sddit.load(3),  # type: ignore[arg-type]
        lambda model: sddit.load("runs", step=0.5),  # type: ignore[arg-type]
        lambda model: sddit.load("runs", dtype="float8"),
        lambda model: sddit.load("runs", dtype=torch.int8),
        lambda model: model.dataset("validation"),
        lambda model: sddit.build(3, "toy"),  # type: ignore[arg-type]
        lambda model: sddit.load("x" * 5000),
        lambda model: sddit.load("tests", layout="toy"),
        lambda model: sddit.load("x", config="config.json"),  # type: ignore[arg-type]
        lambda model: sddit.context(None),  # type: ignore[arg-type]
        lambda model: sddit.context(model.schedule, seed=-1),  # type: ignore[arg-type]
        lambda model: sddit.observe(model, torch.zeros(1)),  # type: ignore[arg-type]
        lambda model: sddit.load("runs", round_tables=1),  # type: ignore[arg-type]
        lambda model: sddit.observe(model, seen_by(model), gradients="no"),  # type: ignore[arg-type]
    ],
)
def test_other_functions_name_theirs(model: sddit.Model, ask: Callable[[sddit.Model], object]) -> None:
    with pytest.raises(SdditError, match="SD-T925"):
        ask(model)


@pytest.mark.parametrize(
    ("kind", "name", "given", "words"),
    [
        ("losses", "toy_agreement", {}, r"missing: widths(.|\n)*\{tap: width"),
        ("losses", "toy_agreement", {"widths": 3}, r"'widths' is of the wrong kind(.|\n)*3 \(int\)"),
        ("losses", "toy_agreement", {"width": {}}, r"unknown argument 'width'(.|\n)*did you mean 'widths'"),
        ("losses", "toy_agreement", {"widths": {}, "weight": 2.0}, r"params=\{'weight'"),
        ("backbones", "toy", {"image": (1, 8, 8)}, r"missing: num_classes, outputs"),
        ("datasets", "toy", {}, r"missing: split(.|\n)*train or test"),
        ("datasets", "toy", {"split": "valid"}, "'split' is of the wrong kind"),
        ("noise_schedules", "toy", {"schedule": 1}, "no arguments besides its settings"),
        ("losses", "toy_agreement", {"params": [1]}, "not a mapping"),
        ("losses", "toy_agreement", {"params": {"weight": float("nan")}}, "params hold no settings"),
        ("losses", "toy_agreement", {"params": {"weight": torch.ones(1)}}, "params hold no settings"),
    ],
)
def test_wrong_arguments_of_a_component_are_listed(
    toys: Host, kind: str, name: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(SdditError, match=rf"SD-T926(.|\n)*{words}"):
        sddit.build(kind, name, **given)


def test_the_right_arguments_build_it(toys: Host) -> None:
    assert sddit.build("losses", "toy_agreement", {"weight": 2.0}, widths={"encoder": 4}, grid=(2, 2))
    assert len(sddit.build("datasets", "toy", split="train"))


def images(model: sddit.Model, count: int = 2) -> torch.Tensor:
    return torch.zeros(count, *model.shapes.image)


def seen_by(model: sddit.Model, **more: Any) -> Any:
    """Return a view of two images at noise level 1."""
    x0, noise = torch.randn(2, 2, *model.shapes.image, generator=torch.Generator().manual_seed(0))
    return sddit.view(model.require_schedule(), x0, noise, torch.ones(2), torch.tensor([0, 1]), **more)


def test_observing_gives_gradients_or_none(model: sddit.Model) -> None:
    seen = seen_by(model, visible=torch.tensor([[0, 1], [1, 2]]))
    seen.x.requires_grad_()
    out = sddit.observe(model, seen, taps=["encoder"])
    assert out.x0 is not None
    (out.x0.square().sum() + out.taps["encoder"].patch.sum()).backward()
    assert seen.x.grad is not None
    assert seen.x.grad.abs().sum() > 0
    gradients = [parameter.grad for parameter in model.backbone.parameters()]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    without = sddit.observe(model, seen, taps=["encoder"], gradients=False)
    assert without.x0 is not None
    assert not without.x0.requires_grad
    assert not without.taps["encoder"].patch.requires_grad
    assert torch.equal(without.x0, out.x0)
    with torch.no_grad():
        nothing = sddit.observe(model, seen).x0
    assert nothing is not None
    assert not nothing.requires_grad


def test_denoising_takes_a_mask(model: sddit.Model) -> None:
    """It is the view with the same visible tokens, at one level and at one per image; hidden pixels change nothing."""
    visible = torch.tensor([[0, 1], [1, 2]])
    seen = seen_by(model, visible=visible)
    expected = sddit.observe(model, seen, gradients=False).x0
    labels, level = torch.tensor([0, 1]), torch.ones(2)
    x = seen.x / model.require_schedule().alpha(level)[:, None, None, None]
    for sigma in (1.0, level):
        masked = model.denoise(x, sigma, labels, visible)
        torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(masked, model.denoise(x, sigma, labels), rtol=1e-3, atol=1e-3)
    for wrong in (visible[:1], visible.float(), visible - 5, visible + 10**6, [[0], [1]]):
        with pytest.raises(SdditError, match=r"SD-T925(.|\n)*visible"):
            model.denoise(x, 1.0, labels, wrong)  # type: ignore[arg-type]


def test_sampling_takes_given_noise(model: sddit.Model) -> None:
    """The noise of the seed, given, gives the same images; in each batch every image starts from its own."""
    request: dict[str, Any] = {"classes": [0, 2], "per_class": 2, "steps": 3}
    drawn = sddit.sample(model, **request)
    recipe, turn = model.require_recipe(), model.num_classes
    ids = torch.tensor([0, turn, 2, 2 + turn])
    noise = KeyedDraws(recipe.seed, 0, ids).normal("sample", recipe.shapes.image)
    assert torch.equal(sddit.sample(model, **request, noise=noise), drawn)
    assert torch.equal(sddit.sample(model, **request, noise=noise.double(), seed=7), drawn)
    assert not torch.equal(sddit.sample(model, **request, noise=-noise), drawn)
    swapped = sddit.sample(model, **request, noise=noise[[1, 0, 2, 3]])
    assert torch.equal(swapped[:2], drawn[[1, 0]])
    for wrong, words in (
        (noise[:3], r"another number of images(.|\n)*4 images"),
        (noise / 0, "noise is not finite"),
        (noise.long(), "noise holds no such images"),
    ):
        with pytest.raises(SdditError, match=rf"SD-T925(.|\n)*{words}"):
            sddit.sample(model, **request, noise=wrong)


NUMBERS: dict[str, Callable[[sddit.Model], dict[str, Any]]] = {
    "no batch": lambda model: {"x": images(model)[0]},
    "another size": lambda model: {"x": images(model)[..., :-1]},
    "grey levels": lambda model: {"x": images(model).to(torch.uint8)},
    "not a tensor": lambda model: {"x": images(model).tolist()},
    "sigma below": lambda model: {"sigma": -1.0},
    "no sigma": lambda model: {"sigma": 0.0},
    "sigma NaN": lambda model: {"sigma": float("nan")},
    "sigma a text": lambda model: {"sigma": "1"},
    "too few sigmas": lambda model: {"sigma": torch.ones(1)},
    "a column of sigmas": lambda model: {"sigma": torch.ones(2, 1)},
    "too few labels": lambda model: {"labels": torch.tensor([0])},
    "label above": lambda model: {"labels": torch.tensor([0, model.num_classes + 1])},
    "label below": lambda model: {"labels": torch.tensor([0, -1])},
    "labels in a list": lambda model: {"labels": [0, 1]},
    "fractions as labels": lambda model: {"labels": torch.tensor([0.0, 1.0])},
}


@pytest.mark.parametrize("wrong", NUMBERS.values(), ids=NUMBERS)
def test_numbers_that_do_not_fit_are_refused_instead_of_broadcast(
    model: sddit.Model, wrong: Callable[[sddit.Model], dict[str, Any]]
) -> None:
    given: dict[str, Any] = {"x": images(model), "sigma": 1.0, "labels": torch.tensor([0, model.num_classes])}
    alone = model.denoise(**{**given, "sigma": torch.tensor([1.0, 2.0])})
    assert torch.equal(model.denoise(**given)[0], alone[0])
    with pytest.raises(SdditError, match="SD-T925"):
        model.denoise(**{**given, **wrong(model)})


def test_views_and_raw_outputs_check_their_numbers(model: sddit.Model) -> None:
    schedule, x, labels, t = model.require_schedule(), images(model), torch.tensor([0, 1]), torch.ones(2)
    assert sddit.observe(model, sddit.view(schedule, x, x, t, labels)).raw is not None
    for given in ((x, x[:1], t, labels), (x, x, t[:1], labels), (x, x, t, [0, 1]), (x[0], x[0], t, labels)):
        with pytest.raises(SdditError, match="SD-T925"):
            sddit.view(schedule, *given)  # type: ignore[arg-type]
    for raw in ((x.double(), t, labels), (x, t[:1], labels), (x, t, labels + 50)):
        with pytest.raises(SdditError, match="SD-T925"):
            model.raw(*raw)
