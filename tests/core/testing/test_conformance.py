"""The conformance kit: it passes what honours the contracts, and says in plain words what does not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from torch import nn

from sddit.errors import Problem, SdditError
from sddit.interfaces import (
    CheckContext,
    CheckSkipped,
    Component,
    LossParams,
    Measurement,
    Needs,
    Params,
    Scalings,
    ViewSpec,
    Want,
)
from sddit.plugins.host import Host
from sddit.testing import ConformanceError, check, check_plugin
from sddit.testing.toys import components as models
from sddit.testing.toys import network
from sddit.testing.toys import params as faces
from sddit.testing.toys.components import ToyAgreement, ToyLoss, ToyPairs, ToySampler, ToySchedule
from sddit.testing.toys.network import ToyBackbone

COUNTER = itertools.count(1)
"""What a forgetful component might keep: another number at every call."""
KINDS = (
    "backbones",
    "noise_schedules",
    "pair_samplers",
    "losses",
    "samplers",
    "attention",
    "guidances",
    "datasets",
    "codecs",
    "features",
    "trackers",
)


def component(kind: str, factory: Callable[..., Any], params: type[Any], **more: Any) -> Component[Any]:
    """A component that no plugin registered."""
    return Component(kind=kind, name="tried", factory=factory, params=params, **{"summary": "Tried.", **more})


def findings(kind: str, factory: Callable[..., Any], params: type[Any], given: Any = None, **more: Any) -> str:
    """What the kit says of it."""
    with pytest.raises(ConformanceError) as caught:
        check(component(kind, factory, params, **more), **(given or {}))
    assert {problem.code for problem in caught.value.problems} == {"SD-P220"}
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_toy_conforms(toys: Host, kind: str):
    found = [c for c in toys.registries.all()[kind] if c.origin == "toy"]
    assert found
    for one in found:
        check(one)


def test_a_plugin_conforms_as_a_whole(toys, tmp_path, loss_source):
    check_plugin("toy")
    (tmp_path / "mine.py").write_text(loss_source, encoding="utf-8")
    check_plugin(tmp_path / "mine.py")
    (tmp_path / "bad.py").write_text(loss_source.replace("dim=(1, 2, 3)", "dim=(2, 3)"), encoding="utf-8")
    with pytest.raises(ConformanceError, match="has a wrong shape"):
        check_plugin(tmp_path / "bad.py")


def test_a_component_is_found_by_its_name(toys):
    check("toy_agreement")
    check("toy/toy_agreement", momentum=0.5)
    with pytest.raises(SdditError, match="several components named 'toy'"):
        check("toy")
    with pytest.raises(SdditError, match="did you mean 'toy_agreement'"):
        check("toy_agrement")
    with pytest.raises(ConformanceError, match=r"setting 'momentum' is invalid.*\n.*\n.*got: +2"):
        check("toy_agreement", momentum=2.0)


def test_settings_are_described_bounded_strict_and_survive_a_recipe():
    class Undescribed(faces.ToyLossParams):
        size: int = Field(3, description="Unbounded.")
        pair: tuple[float, float] = Field((0.0, 1.0), description="A tuple that TOML cannot give.")
        model_config = {"extra": "allow"}  # noqa: RUF012

    said = findings("losses", ToyLoss, Undescribed, summary="")
    for part in (
        "no summary",
        "'size' is a whole number without bounds",
        "went through a recipe and back",
        "accept unknown keys",
    ):
        assert part in said


def mistaken(change: Callable[[Any, torch.Tensor, Any], Any]) -> type[ToyLoss]:
    """A loss that does `change(self, right value, (ctx, views, outputs))` instead of returning the right value."""

    class Mistaken(ToyLoss):
        def __init__(self, params: Any, **more: Any) -> None:
            super().__init__(params, **more)
            self.register_buffer("seen", torch.zeros(()))
            self.used, self.spare = nn.Linear(2, 2), None

        def forward(self, ctx: Any, views: Any, outputs: Any) -> Any:
            return change(self, super().forward(ctx, views, outputs), (ctx, views, outputs)) + 0 * self.touched()

        def touched(self) -> torch.Tensor:
            return self.used.weight.sum() + self.used.bias.sum()

    return Mistaken


def noted(self: Any, value: torch.Tensor, _: Any) -> torch.Tensor:
    self.seen += 1
    return value


def overwritten(self: Any, value: torch.Tensor, given: Any) -> torch.Tensor:
    given[1]["student"].x0.zero_()
    return value


def unread(self: Any, value: torch.Tensor, given: Any) -> torch.Tensor:
    return value + given[2]["student"].taps["encoder"].patch.mean()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda self, value, _: value.mean(), "what forward returns for a full view has a wrong shape"),
        (lambda self, value, _: value[:, None], "got:    (6, 1) float32"),
        (lambda self, value, _: value / 0, "is not finite"),
        (lambda self, value, _: value.detach(), "the loss has no gradient"),
        (lambda self, value, _: value + torch.randn(()), "took numbers from torch's global generator"),
        (lambda self, value, _: value + next(COUNTER), "another value for the same input"),
        (lambda self, value, _: value * value.sum(), "the value of one sample depends on other samples"),
        (lambda self, value, _: value.to(torch.float32), "float64 outputs give another dtype"),
        (lambda self, value, _: value.bfloat16(), "float64 outputs give another dtype"),
        (noted, "a buffer changed in forward: seen"),
        (overwritten, "forward changed what it was given: student.x0"),
        (unread, "declare in needs() what forward reads"),
    ],
)
def test_a_mistake_in_a_loss_is_said_in_plain_words(change, said):
    assert said in findings("losses", mistaken(change), faces.ToyLossParams)


def test_the_untouched_loss_of_those_mistakes_conforms():
    """The negative control: only the change is at fault."""
    check(component("losses", mistaken(lambda self, value, _: value), HeadParams))


class HeadParams(faces.ToyLossParams):
    """States the six weights of the head above."""

    def cost(self, backbone: Any, shapes: Any, view: ViewSpec, num_kept: int) -> Any:
        from sddit.interfaces import Cost

        return Cost(parameters=6)


class Agreement(ToyAgreement):
    """The toy with a teacher, to be corrupted."""


def corrupted(**changes: Any) -> type[ToyAgreement]:
    return type("Corrupted", (Agreement,), changes)


def leaky(self: Any, ctx: Any, views: Any, outputs: Any) -> torch.Tensor:
    return (
        (
            self.head(outputs["student"].taps["encoder"].patch)
            - outputs["teacher"].taps["encoder"].at(outputs["student"].taps["encoder"].index)
        )
        .square()
        .mean(dim=(1, 2))
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ema_modules": ("heads",)}, "`ema_modules` names what it does not have: heads"),
        ({"discard": lambda self: None}, "discard did not forget what forward staged: centre"),
        ({"staged": lambda self: ()}, "a NaN reaches a buffer, and staged() does not show it"),
        ({"forward": leaky}, "the loss has a gradient to the teacher: teacher.taps['encoder'].patch"),
        ({"diagnostics": lambda self: {"x": torch.zeros(3)}}, "the diagnostic 'x' has a wrong shape"),
        ({"after_step": None}, "it lacks after_step"),
    ],
)
def test_a_mistake_in_memory_or_teacher_is_said(changes, said):
    assert said in findings("losses", corrupted(**changes), faces.ToyAgreementParams)


def test_a_head_that_costs_other_than_stated_or_gets_no_gradient_is_said():
    class Cheap(faces.ToyAgreementParams):
        def cost(self, *args: Any) -> Any:
            from sddit.interfaces import Cost

            return Cost(parameters=7)

    class Idle(ToyAgreement):
        def __init__(self, params: Any, **more: Any) -> None:
            super().__init__(params, **more)
            self.spare = nn.Linear(3, 3)

    assert "cost() states another number of parameters" in findings("losses", ToyAgreement, Cheap)
    assert "weights of its own get no gradient: spare.weight, spare.bias" in findings(
        "losses", Idle, faces.ToyAgreementParams
    )


def test_a_loss_that_is_not_a_module_or_does_not_build_is_said():
    assert "it is not a torch.nn.Module" in findings("losses", lambda params, **_: object(), faces.ToyLossParams)
    assert "it raised an error while it was built" in findings(
        "losses", lambda params: ToyLoss(params), faces.ToyLossParams
    )

    class Silent(LossParams):
        """Forgets needs()."""

    assert "its params were asked what they need" in findings("losses", ToyLoss, Silent)


def test_a_scalar_that_couples_samples_conforms():
    class Coupled(faces.ToyLossParams):
        @property
        def couples_samples(self) -> bool:
            return True

    class Mean(ToyLoss):
        def forward(self, ctx: Any, views: Any, outputs: Any) -> torch.Tensor:
            return super().forward(ctx, views, outputs).mean()

    check(component("losses", Mean, Coupled))
    assert "return a scalar, or drop couples_samples" in findings("losses", ToyLoss, Coupled)


def test_a_loss_that_loses_digits_under_bf16_is_said():
    class Low(faces.ToyAgreementParams):
        def needs(self) -> Needs:
            return Needs(Want(taps=("encoder",)))

        def cost(self, *args: Any) -> Any:
            return None

    class Squares(ToyLoss):
        def forward(self, ctx: Any, views: Any, outputs: Any) -> torch.Tensor:
            return outputs["student"].taps["encoder"].patch.square().mean(dim=(1, 2))

    assert "under bf16 the loss is not float32" in findings("losses", Squares, Low)


# backbones


class Tired(ToyBackbone):
    """The toy backbone, to be corrupted: `corrupt` sees what forward gives."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raw, heads, taps = super().forward(*args, **kwargs)
        return self.corrupt(raw, heads, taps, kwargs)

    def corrupt(self, raw: Any, heads: Any, taps: Any, given: Any) -> Any:
        return raw, heads, taps


def backbone(**changes: Any) -> type[Tired]:
    return type("Corrupted", (Tired,), changes)


def with_a_spare(self: Any, params: Any, **more: Any) -> None:
    ToyBackbone.__init__(self, params, **more)
    self.spare = nn.Linear(1, 1)


def without_cls(self: Any, raw: Any, heads: Any, taps: Any, given: Any) -> Any:
    for tokens in taps.values():
        tokens.cls = None
    return raw, heads, taps


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"corrupt": lambda self, raw, heads, taps, given: (raw[:, :1] if raw is not None else None, heads, taps)},
            "its output has a wrong shape",
        ),
        ({"corrupt": without_cls}, "has no class token, though has_cls is True"),
        ({"corrupt": lambda self, raw, heads, taps, given: (raw, heads, {})}, "it gives other taps than asked for"),
        (
            {"corrupt": lambda self, raw, heads, taps, given: (torch.zeros(6, 2, 8, 8), heads, taps)},
            "it gives an output with output=False",
        ),
        (
            {
                "corrupt": lambda self, raw, heads, taps, given: (
                    raw if raw is None else raw + next(COUNTER),
                    heads,
                    taps,
                )
            },
            "another output for the same input",
        ),
        (
            {"corrupt": lambda self, raw, heads, taps, given: (raw if raw is None else raw + raw.mean(), heads, taps)},
            "an image depends on the other images",
        ),
        (
            {
                "corrupt": lambda self, raw, heads, taps, given: (
                    raw if raw is None or given.get("visible") is None else raw + 1,
                    heads,
                    taps,
                )
            },
            "with every token visible it differs",
        ),
        ({"__init__": with_a_spare}, "parameters without a gradient: spare.weight, spare.bias"),
        ({"truncate": lambda self, taps: None}, "truncate drops nothing"),
        ({"set_checkpointing": None}, "it lacks set_checkpointing"),
    ],
)
def test_a_mistake_in_a_backbone_is_said(changes, said):
    assert said in findings("backbones", backbone(**changes), faces.ToyBackboneParams)


def test_a_backbone_that_is_another_kind_of_module_is_said():
    class Plain(nn.Module):
        def __init__(self, params: Any, **more: Any) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(1, 1)])

    found = findings("backbones", Plain, faces.ToyBackboneParams)
    assert "it is not a subclass of sddit.Backbone" in found
    assert "it lacks truncate, set_checkpointing, init_parameter" in found


def test_the_unspoiled_backbone_conforms():
    check(component("backbones", backbone(), faces.ToyBackboneParams))
    check(component("backbones", backbone(), faces.ToyBackboneParams), cls=False, depth=1)


def test_a_backbone_that_costs_other_than_stated_is_said():
    class Cheap(faces.ToyBackboneParams):
        def cost(self, shapes: Any, **more: Any) -> Any:
            return super().cost(shapes, **more).times(1.05)

    said = findings("backbones", ToyBackbone, Cheap)
    assert said.count("cost() states wrong FLOPs") == 2
    assert "wrong parameters" not in said


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (lambda raw, dense: raw, "the dense path gives the output of the full network"),
        (lambda raw, dense: 2 * raw if dense is not False else raw, "each differs from a batch of its kind"),
    ],
)
def test_a_mistake_on_the_dense_path_is_said(path, said):
    class Dense(faces.ToyBackboneParams):
        supports_dense_path: ClassVar[bool] = True

    class TwoPaths(ToyBackbone):
        def forward(self, *args: Any, dense_path: Any = False, **more: Any) -> Any:
            raw, heads, taps = super().forward(*args, **more)
            return None if raw is None else path(raw, dense_path), heads, taps

    assert said in findings("backbones", TwoPaths, Dense)


def test_a_backbone_that_has_every_tap_is_said():
    class Careless(faces.ToyBackboneParams):
        def width(self, tap: Any) -> int:
            return self.hidden

    assert "width() accepts a tap that does not exist" in findings("backbones", ToyBackbone, Careless)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sigma": lambda self, t: 1 / t}, "does not grow with t"),
        ({"perturb": lambda self, x0, noise, t: x0 + noise}, "perturb is not alpha(t) x0 + sigma(t) noise"),
        ({"perturb": lambda self, x0, noise, t: x0.add_(noise)}, "it changed what it was given: x0"),
        ({"t_from_uniform": lambda self, u: torch.rand_like(u)}, "took numbers from torch's global generator"),
        ({"t_from_sigma": lambda self, sigma: 2 * sigma}, "t_from_sigma does not undo"),
        ({"snap": lambda self, sigma: sigma * 1.1}, "snap moves a level that was trained"),
        ({"noise_fraction": lambda self, t: t}, "noise_fraction(t) is not within 0 to 1"),
        ({"noise_fraction": lambda self, t: 1 / (1 + t)}, "noise_fraction(t) does not grow with t"),
        ({"scalings": lambda self, t: Scalings(t, 0 * t, t, t)}, "c_out is 0 somewhere"),
        ({"scalings": lambda self, t: Scalings(t, t, t, 0 * t)}, "c_noise does not distinguish noise levels"),
        ({"grid": lambda self, steps, **_: [80.0 - i for i in range(steps)]}, "has a wrong length"),
        ({"grid": lambda self, steps, sigma_min, sigma_max, **_: [sigma_min] * steps + [0.0]}, "does not fall to 0"),
    ],
)
def test_a_mistake_in_a_noise_schedule_is_said(changes, said):
    assert said in findings("noise_schedules", type("Corrupted", (ToySchedule,), changes), faces.ToyScheduleParams)


def pairs(change: Callable[[dict[str, Any], Any, Any], Any]) -> type[ToyPairs]:
    class Corrupted(ToyPairs):
        def __call__(self, batch: Any, draws: Any, schedule: Any, ctx: Any) -> Any:
            views = super().__call__(batch, draws, schedule, ctx)
            return change(views, batch, schedule) or views

    return Corrupted


def set_to(name: str, key: str, make: Callable[[Any], Any]) -> Callable[..., None]:
    def change(views: Any, batch: Any, schedule: Any) -> None:
        setattr(views[name], key, make(getattr(views[name], key)))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda views, *_: {"student": views["student"]}, "it makes other views than its params state"),
        (set_to("teacher", "network", lambda _: "student"), "view 'teacher' is for the wrong network"),
        (set_to("student", "x", lambda x: x[:, :1]), "x of view 'student' has a wrong shape"),
        (set_to("student", "x", lambda x: x + 1), "is not alpha(t) x0 + sigma(t) noise"),
        (set_to("student", "labels", lambda labels: labels.float()), "labels of view 'student' have a wrong dtype"),
        (set_to("student", "labels", lambda labels: labels + 9), "labels of view 'student' are not classes"),
        (set_to("student", "visible", lambda v: None), "view 'student' hides nothing"),
        (set_to("student", "visible", lambda v: v[:, :-1]), "visible of view 'student' has a wrong shape"),
        (set_to("student", "visible", lambda v: v.flip(1)), "are not rising token numbers"),
        (set_to("student", "dense_path", lambda _: torch.ones(6).bool()), "though its ViewSpec states no path_drop"),
        (set_to("student", "noise", torch.zeros_like), "every step has the same noise in view 'student'"),
        (set_to("student", "noise", torch.randn_like), "took numbers from torch's global generator"),
        (set_to("student", "noise", lambda noise: noise + next(COUNTER)), "the same draws give another noise"),
        (set_to("student", "t", lambda t: t + t.mean()), "t of view 'student' depends on the other samples"),
        (set_to("student", "x0", lambda x0: x0.mul_(2)), "it changed the batch: x0"),
    ],
)
def test_a_mistake_in_a_pair_sampler_is_said(change, said):
    given = {"mask_ratio": 0.5, "teacher": True}
    assert said in findings("pair_samplers", pairs(change), faces.ToyPairsParams, given)


def test_the_unspoiled_pair_sampler_conforms():
    check(component("pair_samplers", pairs(lambda *_: None), faces.ToyPairsParams), mask_ratio=0.5, teacher=True)


# guidance


def sampler(change: Callable[[torch.Tensor, Any], torch.Tensor]) -> type[ToySampler]:
    class Corrupted(ToySampler):
        def __call__(self, denoise: Any, x: Any, sigmas: Any, **more: Any) -> Any:
            return change(super().__call__(denoise, x, sigmas, **more), denoise)

    return Corrupted


def asks_again(x: torch.Tensor, denoise: Any) -> torch.Tensor:
    denoise(x, 1.0)
    return x


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, _: x.float(), "its state is not float64"),
        (lambda x, _: x[:2], "what it returns has a wrong shape"),
        (lambda x, _: x + torch.randn_like(x), "took numbers from torch's global generator"),
        (lambda x, _: x + next(COUNTER), "other images for the same noise"),
        (lambda x, _: x + 0.1, "it does not end at the network's image"),
        (lambda x, _: 1.2 * x, "the standard deviation of Gaussian images is wrong"),
        (lambda x, _: x + x.mean(), "an image depends on the other images"),
        (asks_again, "`evaluations` is not how often it calls the network"),
    ],
)
def test_a_mistake_in_a_sampler_is_said(change, said):
    assert said in findings("samplers", sampler(change), faces.ToySamplerParams)


def test_a_mistake_in_a_guidance_rule_is_said():
    class Null(models.ToyGuidance):
        def __call__(self, denoiser: Any, labels: Any) -> Any:
            def denoise(x: Any, sigma: Any) -> Any:
                denoiser(x, sigma, torch.full_like(labels, denoiser.num_classes))
                return denoiser(x.mul_(1.0 + sigma), sigma, labels)

            return denoise

    said = findings("guidances", Null, faces.ToyGuidanceParams)
    for part in ("more often than `evaluations` says", "null label without needs_null_label", "changed x in place"):
        assert part in said
    assert "no Prediction" in findings(
        "guidances", lambda params, **_: lambda *_: lambda x, sigma: x, faces.ToyGuidanceParams
    )


def test_a_guidance_rule_that_does_not_state_its_dense_path_is_said():
    class Dense(models.ToyGuidance):
        def __call__(self, denoiser: Any, labels: Any) -> Any:
            return lambda x, sigma: denoiser(x, sigma, labels, path="dense")

    said = "it takes the dense path more often than `dense_evaluations` says"
    assert said in findings("guidances", Dense, faces.ToyGuidanceParams)


def test_a_mistake_in_a_kernel_is_said():
    class NoScale(network.ToyAttention):
        def __call__(self, q: Any, k: Any, v: Any, **more: Any) -> Any:
            return super().__call__(2 * q, k, v, **more)

    said = findings("attention", NoScale, faces.ToyAttentionParams)
    for part in ("in fp64", "with bias [heads, N, N]", "with groups", "its gradient to q is wrong"):
        assert part in said


def test_a_mistake_in_an_optimizer_is_said():
    class Params(faces.ToyOptimizerParams):
        @property
        def state_per_parameter(self) -> int:
            return 1

    class Loses:
        def __init__(self, params: Any) -> None:
            self.params = params

        def __call__(self, groups: Any, device: Any) -> Any:
            return torch.optim.SGD([p for group in groups for p in group["params"]], lr=0.1)

    assert "groups lose their lr_scale" in findings("optimizers", Loses, faces.ToyOptimizerParams)
    assert "state_per_parameter is not what it keeps" in findings("optimizers", models.ToyOptimizer, Params)


def test_an_optimizer_whose_groups_change_each_other_is_found():
    class Coupled(torch.optim.AdamW):
        def step(self, closure=None):
            torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 0.1)
            return super().step(closure)

    class Optimizer(models.ToyOptimizer):
        def __call__(self, groups, device):
            return Coupled([dict(group) for group in groups], lr=1e-2)

    said = findings("optimizers", Optimizer, faces.ToyOptimizerParams)
    assert "the steps of a group depend on the gradients of another" in said


def test_a_mistake_in_an_extractor_is_said():
    class Wrong(models.ToyFeatures):
        dimensions = 5

        def features(self, images: Any) -> Any:
            return super().features(images)[:, :5].double() - images.double().mean()

    said = findings("features", Wrong, faces.ToyFeaturesParams)
    for part in ("dimensions differ", "not float32", "depend on the other images"):
        assert part in said


def test_an_extractor_that_sees_no_images_is_said():
    class Blind(models.ToyFeatures):
        def features(self, images: Any) -> Any:
            return 0 * super().features(images)

    assert "it gives the same features for all images" in findings("features", Blind, faces.ToyFeaturesParams)


def test_an_extractor_that_does_not_say_that_it_classifies_is_said():
    class Classifier(models.ToyFeatures):
        def classes(self, images: Any) -> Any:
            return torch.zeros(len(images), dtype=torch.int64)

    class Params(faces.ToyFeaturesParams):
        @property
        def own_figures(self) -> tuple[str, ...]:
            return ("class_accuracy",)

    said = "differ on whether it is a classifier"
    assert said in findings("features", Classifier, faces.ToyFeaturesParams)
    assert said in findings("features", models.ToyFeatures, Params)
    check(component("features", Classifier, Params))  # the control


class Inputs(models.ToyCodec):
    """Changes the images that it is given."""

    def encode(self, images: Any) -> Any:
        found = super().encode(images)
        images.clamp_(max=100)
        return found


class Whole(models.ToyCodec):
    """Returns images in [0, 1] instead of uint8."""

    def decode(self, latents: Any) -> Any:
        return super().decode(latents) / 255


class Coarse(models.ToyCodec):
    """Pools twice as much as its facts say."""

    def _means(self, images: Any) -> Any:
        return (torch.nn.functional.avg_pool2d(super()._means(images)[0], 2),)


class Batched(models.ToyCodec):
    """Shifts an image by the mean of its batch."""

    def encode(self, images: Any) -> Any:
        mean, std = super().encode(images)
        return (mean - mean.mean() if len(mean) else mean), std


class Drawn(models.ToyCodec):
    """Draws the latent instead of returning its distribution."""

    def encode(self, images: Any) -> Any:
        mean, std = super().encode(images)
        return mean + 1e-3 * torch.randn_like(mean), std


class Counting(models.ToyCodec):
    """Gives another latent at every call."""

    def encode(self, images: Any) -> Any:
        mean, std = super().encode(images)
        return mean + next(COUNTER), std


class Broken(models.ToyCodec):
    """Gives a latent that is not a number."""

    def encode(self, images: Any) -> Any:
        mean, std = super().encode(images)
        return mean / 0 * 0, std


class Negative(models.ToyCodec):
    """Returns the logarithm of the standard deviation."""

    def encode(self, images: Any) -> Any:
        mean, std = super().encode(images)
        return mean, std.log()


class Blind(models.ToyCodec):
    """Decodes every latent to black."""

    def decode(self, latents: Any) -> Any:
        return super().decode(latents) * 0


class Lenient(models.ToyCodec):
    """Takes any image, and latents that are not numbers."""

    def encode(self, images: Any) -> Any:
        images = (images * 255).to(torch.uint8) if images.is_floating_point() else images
        images = images.expand(-1, 3, -1, -1)[..., : images.shape[-1] // 2 * 2]
        return super().encode(images)

    def decode(self, latents: Any) -> Any:
        return super().decode(latents.nan_to_num())


class Otherwise(models.ToyCodec):
    """Refuses with an error of its own."""

    def encode(self, images: Any) -> Any:
        if images.dtype != torch.uint8:
            raise SdditError(Problem("SD-D301", "no image", "images", fix="give one"))
        return super().encode(images)


@pytest.mark.parametrize(
    ("codec", "part"),
    [
        (Inputs, "encode(images) changes its input"),
        (Whole, "decoded images are not uint8"),
        (Coarse, "the mean of encode(images) has a wrong shape"),
        (Batched, "encode(images) of an image depends on the batch around it"),
        (Counting, "encode(images) differs from call to call"),
        (Drawn, "took numbers from torch's global generator"),
        (Broken, "the mean of encode(images) is not finite"),
        (Negative, "a standard deviation is negative"),
        (Blind, "decoded images do not depend on the latents"),
        (Lenient, "it accepts grey images"),
        (Lenient, "it accepts images that are not uint8"),
        (Lenient, "it accepts images of a size that the factor does not divide"),
        (Lenient, "it accepts latents that are NaN"),
        (Otherwise, "it refuses images that are not uint8 with another code"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_codec_that_breaks_its_contract_is_said(codec: Any, part: str) -> None:
    assert part in findings("codecs", codec, faces.ToyCodecParams)


def test_a_codec_with_other_facts_than_its_params_is_said() -> None:
    class Other(models.ToyCodec):
        def __init__(self, params: Any, **more: Any) -> None:
            super().__init__(faces.ToyCodecParams(side=4), **more)

    assert "other facts than its params" in findings("codecs", Other, faces.ToyCodecParams)
    check(component("codecs", models.ToyCodec, faces.ToyCodecParams), side=4)  # the control


def test_a_tracker_that_forgets_its_folder_is_said():
    class Forgetful(models.ToyTracker):
        def log(self, step: int, values: Any) -> None:
            self.folder.mkdir()

    assert "it raised an error while a run was logged" in findings("trackers", Forgetful, faces.ToyTrackerParams)


def test_a_check_whose_measurement_fails_is_said():
    def fails(context: CheckContext) -> Iterator[Measurement]:
        yield Measurement("distance", 2.0, 1.0)

    def lacks(context: CheckContext) -> Iterator[Measurement]:
        yield Measurement("distance", 0.5, 1.0)
        raise CheckSkipped("no such file")

    said = findings("checks", fails, Params)
    assert "a measurement fails: distance" in said
    assert "got:    2\n" in said
    check(component("checks", lacks, Params))


def test_a_missing_dependency_is_refused_before_anything_is_tried(toys: Host):
    from dataclasses import replace

    one = replace(toys.registries.losses.get("toy"), name="needy", requires=("no-such-distribution",))
    toys.registries.losses._offers["needy"] = [one]
    with pytest.raises(SdditError, match="SD-P210"):
        check("needy")


def test_the_kit_names_the_line_of_an_error():
    def forward(self: Any, ctx: Any, views: Any, outputs: Any) -> Any:
        raise KeyError("nothing")

    said = findings("losses", type("Raises", (ToyLoss,), {"forward": forward}), faces.ToyLossParams)
    assert f"{Path(__file__)}:{forward.__code__.co_firstlineno + 1}" in said
