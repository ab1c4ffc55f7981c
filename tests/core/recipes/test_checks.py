"""Rules between the slots of a recipe, and what has no effect in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sddit.errors import Problem
from sddit.recipes.checks import check_device
from sddit.recipes.recipe import Recipe

Resolve = Callable[..., Recipe]
Problems = Callable[..., list[Problem]]

SOLID = ["backbone.name=solid", "backbone.patch=4"]
WANTING = "loss.extra.name=wanting"
TEACHER = "pair_sampler.teacher=true"
TOY_SCORES = "evaluate.features=['toy']"


@pytest.mark.parametrize(
    ("overrides", "code", "what", "key"),
    [
        (["loss.denoise.weight=0"], "SD-R108", "no loss has a weight above 0", "loss"),
        (["loss.denoise.views=['studnt']"], "SD-R112", "has no view 'studnt'", "loss.denoise.views"),
        ([TEACHER, "loss.denoise.views=['teacher']"], "SD-R108", "reads no student view", "loss.denoise.views"),
        ([WANTING, "loss.extra.teacher=true"], "SD-R108", "needs a teacher view", "loss.extra"),
        (
            [WANTING, TEACHER, "loss.extra.teacher=true", "loss.extra.views=['student']"],
            "SD-R108",
            "needs a teacher view",
            "loss.extra",
        ),
        ([WANTING, "loss.extra.tap=decoder"], "SD-R113", "no tap 'decoder'", "loss.extra"),
        ([WANTING, "loss.extra.tap=3"], "SD-R113", "no tap 3", "loss.extra"),
        ([WANTING, "loss.extra.cls=true", "backbone.cls=false"], "SD-R108", "reads a class token", "loss.extra"),
        ([*SOLID, "pair_sampler.mask_ratio=0.5"], "SD-R108", "does not support masking", "pair_sampler"),
        (["pair_sampler.mask_ratio=0.8"], "SD-R108", "a mask leaves no token", "pair_sampler"),
        (["backbone.name=solid", "backbone.patch=3"], "SD-R108", "patch 3 does not divide 8", "backbone"),
        (["train.micro_batch=3"], "SD-R108", "does not divide the batch", "train.micro_batch"),
        (["train.micro_batch=16"], "SD-R108", "does not divide the batch", "train.micro_batch"),
        ([WANTING, "loss.extra.coupled=true", "train.micro_batch=4"], "SD-R108", "entire batch", "train.micro_batch"),
        (["train.batch=25"], "SD-D305", "smaller than one batch", "train.batch"),
        (["attention.name=narrow"], "SD-R108", "does not compute in fp32", "train.precision"),
        (["evaluate.weights=main"], "SD-R114", "no weights 'main'", "evaluate.weights"),
        (["guidance.name=guided", "dataset.label_drop=0.0"], "SD-T903", "label dropout", "dataset.label_drop"),
        (["guidance.name=guided", "guidance.dense=1"], "SD-R108", "skips a sparse span", "guidance.name"),
        (["guidance.name=guided", "dataset.classes=0"], "SD-T903", "needs classes", "guidance.name"),
        (["loss.denoise.until=0"], "SD-R108", "ends before the first step", "loss.denoise.until"),
        (["loss.denoise.until=9"], "SD-R108", "all losses end before the run does", "loss.denoise.until"),
        (
            ["loss.denoise.until=0.5", "loss.b.name=toy", "loss.b.until=8"],
            "SD-R108",
            "all losses end",
            "loss.b.until",
        ),
        (["tracker.a.name=toy", "tracker.b.name=toy/toy"], "SD-R108", "are the same component", "tracker.b"),
        (["loss.denoise.until=11"], "SD-R108", "is after the end of the run", "loss.denoise.until"),
        (["optimizer.warmup=11"], "SD-R108", "is after the end of the run", "optimizer.warmup"),
        (["optimizer.lr={start=1,end=0,until=11}"], "SD-R108", "is after", "optimizer.lr.until"),
        (["optimizer.lr={start=1,end=0,from=0.6,until=5}"], "SD-R108", "ends before it begins", "optimizer.lr"),
        (["loss.denoise.window=[1.0, 0.5]"], "SD-R108", "no noise level", "loss.denoise.window"),
        (["loss.denoise.window=[20.0, 30.0]"], "SD-R108", "no noise level", "loss.denoise.window"),
        (
            [WANTING, "loss.extra.coupled=true", "loss.extra.window=[0.1, 1.0]"],
            "SD-R108",
            "entire batch",
            "loss.extra.window",
        ),
        (["sampler.sigma_min=5.0", "sampler.sigma_max=5.0"], "SD-T902", "no noise to remove", "sampler.sigma_min"),
        (["sampler.sigma_min=20.0"], "SD-T902", "no noise to remove", "sampler.sigma_min"),
        (["sampler.sigma_max=0.01"], "SD-T902", "no noise to remove", "sampler.sigma_max"),
        ([TOY_SCORES, "evaluate.samples=3"], "SD-T906", "too few samples", "evaluate.samples"),
        ([TOY_SCORES, "evaluate.neighbours=8"], "SD-T906", "too few held-out images", "dataset"),
        ([WANTING, "loss.extra.reported=13"], "SD-R108", "thirteen", "backbone"),
        (
            [WANTING, "loss.extra.reported=14"],
            "SD-P220",
            "extras/wanting failed to answer WantingParams.check",
            "loss.extra",
        ),
        (["loss.extra.name=silent"], "SD-P220", "extras/silent failed to answer SilentParams.needs", "loss.extra"),
    ],
)
def test_what_cannot_work_together_is_refused(
    problems: Problems, base: str, overrides: list[str], code: str, what: str, key: str
) -> None:
    (found,) = problems(base, *overrides)
    assert found.code == code
    assert what in found.what
    assert found.where.endswith(f"({key})")


@pytest.mark.parametrize(
    "overrides",
    [
        [WANTING, TEACHER, "loss.extra.teacher=true"],
        [WANTING, "loss.extra.tap=2"],
        [WANTING, "loss.extra.tap=decoder", "loss.extra.weight=0"],  # a term that is omitted needs nothing
        [WANTING, "loss.extra.coupled=true", "train.micro_batch=8"],
        ["pair_sampler.name=three", "loss.denoise.views=['two']"],
        ["pair_sampler.mask_ratio=0.75"],
        ["pair_sampler.mask_ratio={start=0.5,end=0.0,shape='cosine',power=2.0}"],
        [*SOLID, "pair_sampler.mask_ratio=0"],
        ["train.micro_batch=4"],
        ["train.batch=24"],
        ["attention.name=narrow", "train.precision=bf16"],
        ["evaluate.weights=student"],
        ["evaluate.weights=main", "ema.main.decay=0.5"],
        ["guidance.name=guided"],
        ["loss.denoise.until=10"],
        ["loss.denoise.until=5", "loss.b.name=toy"],
        ["tracker.a.name=toy", "tracker.b.name=silent"],
        ["optimizer.warmup=1.0"],
        ["loss.denoise.window=[0.0, 0.5]"],
        ["sampler.sigma_min=0.01", "sampler.sigma_max=30.0"],  # a wider range than the schedule's is a choice
        ["sampler.sigma_min=19.0"],
        [TOY_SCORES, "evaluate.samples=4"],
        [TOY_SCORES, "evaluate.neighbours=7"],
        ["evaluate.samples=3", "evaluate.neighbours=12"],  # nothing is scored
    ],
)
def test_what_can_run_resolves(resolved: Resolve, base: str, overrides: list[str]) -> None:
    assert resolved(base, *overrides).path == Path("recipe.toml")


def test_each_problem_is_reported_once_and_all_together(problems: Problems, base: str) -> None:
    found = problems(
        base, "train.micro_batch=3", "train.batch=32", "evaluate.weights=x", "loss.denoise.views=['a', 'b']"
    )
    assert sorted(p.code for p in found) == ["SD-D305", "SD-R108", "SD-R112", "SD-R112", "SD-R114"]
    assert len(set(found)) == len(found)


def test_a_remedy_can_be_typed(problems: Problems, resolved: Resolve, base: str) -> None:
    (found,) = problems(base, "train.batch=20", "train.micro_batch=6")
    assert found.fix == "train.micro_batch = 5"
    resolved(base, "train.batch=20", found.fix.replace(" ", ""))


def test_the_device_is_checked_when_it_is_known(resolved: Resolve, base: str) -> None:
    narrow = resolved(base, "attention.name=narrow", "train.precision=bf16")
    assert check_device(narrow, "cuda") == []
    (found,) = check_device(narrow, "cpu")
    assert "does not train on cpu, forward only" in found.what
    assert "narrow" not in found.expect
    assert "toy" in found.expect
    assert found.fix == "--device cuda"
    assert check_device(resolved(), "cpu") == []
    assert len(check_device(resolved(), "mps")) == 1


TEACHER_TABLE = "[teacher]\nmomentum = 0.5\n"
IDLE_TERM = '[loss.extra]\nname = "wanting"\nweight = 0.0\ntap = 1\n'


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        (["teacher.momentum=0.5"], {"teacher.momentum"}),
        ([WANTING, "loss.extra.weight=0", "loss.extra.tap=1"], {"loss.extra.tap"}),
        (["sampler.grid=log", "sampler.rho=3"], {"sampler.rho"}),
        (["dataset.classes=0", "dataset.label_drop=0.5"], {"dataset.label_drop"}),
        (["evaluate.samples=10", "evaluate.neighbours=2"], {"evaluate.neighbours"}),
        (["evaluate.samples=10", "evaluate.neighbours=2", TOY_SCORES], set()),
        (["evaluate.previews=0", "evaluate.per_class=4"], {"evaluate.per_class"}),
        (["evaluate.previews=1", "evaluate.per_class=4", "evaluate.labels=random"], set()),
        (
            ["dataset.classes=0", "evaluate.per_class=4", "evaluate.labels=random"],
            {"evaluate.per_class", "evaluate.labels"},
        ),
        (["guidance.name=guided", "guidance.scale=1", "guidance.shape=2.0"], {"guidance.shape"}),
        (["guidance.name=guided", "guidance.scale=1", "guidance.shape=1.0"], set()),  # the default, written out
        (["guidance.name=guided", "guidance.scale=2", "guidance.shape=2.0"], set()),
        (
            ["guidance.name=guided", "guidance.scale=1", "guidance.shape={start=1,end=0}"],
            {"guidance.shape.start", "guidance.shape.end"},
        ),
        (["optimizer.head_lr=0.5"], {"optimizer.head_lr"}),
        (["optimizer.clip_scope=each"], {"optimizer.clip_scope"}),
        (["optimizer.clip_scope=each", "optimizer.clip=1"], set()),
        (["optimizer.head_lr=0.5", "loss.extra.name=toy_agreement", TEACHER], set()),
        (["optimizer.head_lr=0.5", "loss.extra.name=unpriced"], set()),  # it may have heads
        ([WANTING, TEACHER, "loss.extra.teacher=true", "teacher.momentum=0.5"], set()),
        (["sampler.grid=edm", "sampler.rho=3"], set()),
    ],
)
def test_a_key_without_effect_is_listed_and_warned_of(
    resolved: Resolve, base: str, overrides: list[str], idle: set[str]
) -> None:
    recipe = resolved(base, *overrides)
    assert set(recipe.idle) == idle
    assert {warning.split()[0] for warning in recipe.warnings} == idle


def test_an_inherited_key_without_effect_is_listed_only(
    resolved: Resolve, write: Callable[[str, str], object], base: str
) -> None:
    write("parent.toml", base + TEACHER_TABLE + IDLE_TERM)
    recipe = resolved('extends = "parent.toml"\n[loss.extra]\ntap = 2\n')
    assert set(recipe.idle) == {"teacher.momentum", "loss.extra.tap"}
    assert recipe.warnings == ("loss.extra.tap has no effect here (recipe.toml:3)",)


@pytest.mark.parametrize(
    ("overrides", "who", "method"),
    [
        (["guidance.name=guided", "guidance.scale=13"], "extras/guided", "idle"),
        (["loss.extra.name=unpriced", "loss.extra.puzzled=true"], "extras/unpriced", "cost"),
    ],
)
def test_a_component_that_cannot_say_what_is_idle_is_named(
    problems: Problems, base: str, overrides: list[str], who: str, method: str
) -> None:
    (found,) = problems(base, *overrides)
    assert found.code == "SD-P220"
    assert found.what.startswith(who) and found.what.endswith(f".{method}")


def test_the_remedies_of_too_few_images_can_be_typed(resolved: Resolve, problems: Problems, base: str) -> None:
    (found,) = problems(base, TOY_SCORES, "evaluate.samples=3")
    assert found.fix == "evaluate.samples = 4, or evaluate.features=[]"
    resolved(base, TOY_SCORES, "evaluate.samples=4")
    resolved(base, "evaluate.features=[]", "evaluate.samples=3")
