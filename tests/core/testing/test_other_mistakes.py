"""Mistakes in plugins of kinds other than losses: a run refuses them or warns, and never blames the toolkit."""

from __future__ import annotations

from pathlib import Path

import pytest

from sddit.cli.app import call
from sddit.plugins.host import using_host
from sddit.testing import TOY_RECIPE, toy_host

SOURCE = """
import torch
from sddit import hookimpl
from sddit.testing.toys import components as toys, network, params


class Mine({base}):
    {body}


@hookimpl
def register_{kind}(registry):
    registry.add("mine", Mine, params=params.{base_name}Params, summary="Mine.")
"""
BASES = {
    "backbones": ("backbone", "network.ToyBackbone"),
    "datasets": ("dataset", "toys.ToyDataset"),
    "noise_schedules": ("noise_schedule", "toys.ToySchedule"),
    "optimizers": ("optimizer", "toys.ToyOptimizer"),
    "pair_samplers": ("pair_sampler", "toys.ToyPairs"),
    "samplers": ("sampler", "toys.ToySampler"),
}
NO_GROUPS = 'return torch.optim.SGD([p for g in groups for p in g["params"]], lr=1e-3)'
REFUSED = [
    ("backbones", "def forward(self, *args, **more): return None", "NoneType"),
    ("datasets", "def fetch(self, ids): return super().fetch(ids)[0][:2], super().fetch(ids)[1]", "wrong shape"),
    ("datasets", "def to_images(self, x): return None", "NoneType"),
    ("noise_schedules", "def t_from_uniform(self, u): return None", "t_from_uniform has a wrong shape"),
    ("noise_schedules", "def grid(self, steps, **more): return None", "noise levels"),
    ("noise_schedules", "def grid(self, steps, **more): return super().grid(steps, **more)[1:]", "noise levels"),
    ("noise_schedules", "def scalings(self, t): return {}", "dict"),
    ("optimizers", "def __call__(self, groups, device): return None", "it is not a torch optimizer"),
    ("optimizers", f"def __call__(self, groups, device): {NO_GROUPS}", "groups lose their lr_scale"),
    ("pair_samplers", "def __call__(self, *args): return None", "other views than its params state"),
    ("pair_samplers", "def __call__(self, *args): return list(super().__call__(*args).values())", "other views"),
    ("samplers", "def __call__(self, denoise, x, sigmas, **more): return None", "NoneType"),
    ("samplers", "def __call__(self, denoise, x, sigmas, **more): return x[:, :, :4]", "than the images"),
    ("samplers", "def __call__(self, denoise, x, sigmas, *, noise): return x", "callback"),
]
WARNED = [
    ("backbones", "def forward(self, x, *a, **k): return super().forward(x.mul_(0.9), *a, **k)", "given: x"),
    (
        "backbones",
        "def __init__(self, *a, **k): super().__init__(*a, **k); self.more = [torch.nn.Linear(3, 3)]",
        "layers in",
    ),
    ("noise_schedules", "def perturb(self, x0, noise, t): return x0.add_(noise)", "it changed what it was given: x0"),
    ("noise_schedules", "def t_from_uniform(self, u): return super().t_from_uniform(torch.rand_like(u))", "generator"),
    ("samplers", "def __call__(self, *a, **k): return super().__call__(*a, **k) + torch.randn(())", "generator"),
]


def run(kind: str, body: str, *overrides: str) -> int:
    slot, base = BASES[kind]
    name = base.partition(".")[2]
    Path("mine.py").write_text(SOURCE.format(kind=kind, body=body, base=base, base_name=name), encoding="utf-8")
    Path("toy.toml").write_text(f'plugins = ["./mine.py"]\n{TOY_RECIPE}\n[evaluate]\npreviews = 0\nsamples = 8\n')
    with using_host(toy_host()):
        return call(["toy.toml", f"{slot}.name=mine/mine", *overrides])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("kind", "body", "cause"), REFUSED)
def test_a_run_refuses_what_it_cannot_use(kind: str, body: str, cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(kind, body)
    said = capsys.readouterr().err
    assert "bug in the toolkit" not in said and "Traceback" not in said, said
    assert status == 3 and "error SD-P2" in said and cause in said, said


@pytest.mark.parametrize(("kind", "body", "cause"), WARNED)
def test_a_run_warns_of_what_it_cannot_see_itself(
    kind: str, body: str, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(kind, body) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "mine/mine breaks its contract" in said and cause in said and "sddit-run check" in said, said


@pytest.mark.parametrize("kind", BASES)
def test_the_plugin_without_a_mistake_runs_without_a_warning(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The negative control."""
    assert run(kind, "pass") == 0
    assert "breaks its contract" not in " ".join(capsys.readouterr().out.split())


SETTINGS = """
from pydantic import Field


class MineParams(params.ToySamplerParams):
    size: int = Field({values}ge=1, description="A size.")


class Mine("""


@pytest.mark.parametrize(("values", "tested"), [("", False), ("examples=[3], ", True), ("default=3, ", True)])
def test_a_setting_without_default_is_tested_with_its_example(
    values: str, tested: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SOURCE.replace("class Mine(", SETTINGS.replace("{values}", values))
    monkeypatch.setitem(globals(), "SOURCE", source.replace("params.{base_name}Params", "MineParams"))
    changes = "def __call__(self, *a, **k): return super().__call__(*a, **k) + torch.randn(())"
    assert run("samplers", changes, "sampler.size=4") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("breaks its contract: it took numbers" in said) == tested
    assert ("sampler mine/mine is not tested: 'size' has no default" in said) == (not tested)
    with using_host(toy_host()):
        assert call(["check", "mine.py"]) == 3
    said = capsys.readouterr().err
    assert ("setting 'size' is invalid" in said) == (not tested) and ("generator" in said) == tested
