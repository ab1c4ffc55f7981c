"""Provide a world of plugins, recipes of toys, ablations of toys, and calls of the command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from io import BytesIO
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest
from PIL import Image

from sddit.ablations import runner
from sddit.ablations.planning.arms import Ablation, expand
from sddit.ablations.planning.plan import make_plan
from sddit.plugins import host as host_module
from sddit.plugins.host import Host
from sddit.recipes.merge import load
from sddit.testing import TOY_PAIR_RECIPE, TOY_RECIPE

LOSS = """
from pydantic import Field
from sddit import hookimpl
from sddit.interfaces import LossParams, Needs, Want
from sddit.losses import LossTerm

class MineParams(LossParams):
    scale: float = Field(1.0, gt=0, description="A factor.")

    def needs(self):
        return Needs(student=Want(output=True))

class Mine(LossTerm):
    def __init__(self, params, **_):
        super().__init__()
        self.scale = params.scale

    def forward(self, ctx, views, outputs):
        return self.scale * (outputs["student"].x0 - views["student"].x0).square().mean(dim=(1, 2, 3))

@hookimpl
def register_losses(registry):
    registry.add("mine", Mine, params=MineParams, summary="Squared error.")
"""

Distribution = Callable[..., None]

NO_PLUGINS = Path(__file__).parent / "no_plugins"


def _load(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"{path.stem}_of_tests", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hidden = _load(NO_PLUGINS / "sitecustomize.py")
disk_faults = _load(Path(__file__).parent / "disk_faults.py")


@pytest.fixture(autouse=True)
def no_builtin_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the built-in plugins from every test of the core and from the processes that it starts."""
    monkeypatch.setattr(host_module, "entry_points", hidden.entry_points)
    monkeypatch.setattr(host_module, "_current", [])
    for name in [name for name in sys.modules if name.partition(".")[0] in hidden.HIDDEN]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [hidden.Hide(), *sys.meta_path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NO_PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.fixture
def in_child(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`in_child(act, turn, kill=True)` calls `act` in a process that is killed at its n-th change of the disk.

    Nothing is synced: only a power failure needs that.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    found: Callable[..., str] = disk_faults.in_child
    return found


@pytest.fixture
def loss_source() -> str:
    """A one-file plugin with one working loss named `mine`."""
    return LOSS


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distribution:
    """`distribution("acme-dist", "acme", source)` is a package with one module and one entry point, on the path."""

    def make(dist: str, entry: str, source: str, version: str = "1.0") -> None:
        site = tmp_path / f"site_{dist}"
        info = site / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        module = f"module_of_{dist.replace('-', '_')}"
        (site / f"{module}.py").write_text(dedent(source), encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[sddit]\n{entry} = {module}\n", encoding="utf-8")
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


BUILTIN = """
from sddit import hookimpl
from sddit.testing.toys.params import ToyOptimizerParams

@hookimpl
def register_optimizers(registry):
    registry.add("adamw", "nowhere:Nothing", params=ToyOptimizerParams, summary="A stand-in.")
"""


@pytest.fixture
def core_host(distribution: Distribution) -> Callable[[], Host]:
    """Makes a host that finds every entry point and loads only our own, a stand-in for the standard plugin."""
    distribution("sddit", "sddit", BUILTIN)
    return lambda: Host(builtins=("sddit",))


@pytest.fixture
def toy_recipe(tmp_path: Path, toys: Host) -> Path:
    """A recipe of toys in a folder of its own."""
    path = tmp_path / "recipes_of_test" / "toy.toml"
    path.parent.mkdir()
    path.write_text(TOY_RECIPE, encoding="utf-8")
    return path


SCORED = '\n[evaluate]\nsamples = 12\nfeatures = ["toy"]\npreviews = 0\nkid_subsets = 2\n'

PUBLISHABLE = """
[ablation]
question = "Does it *help*?"
tuning = "None, see /home/someone/notes/tuning.md"
seeds = [0, 1, 2]
metrics = ["toy.fd"]
[ablation.arms.base]
[ablation.arms.shifted]
seed = 100
[ablation.arms.rival]
loss.agree.weight = 0.25
"""

TRAINER = dedent("""
    import json, pathlib, signal, sys, time

    recipe_file, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3])
    recipe, run = json.loads(recipe_file.read_text()), out / recipe_file.stem
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.resolved.json").write_text(json.dumps(recipe))
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: asked.append(number))
    log = run / "metrics.jsonl"
    step = json.loads(log.read_text().splitlines()[-1])["step"] if log.is_file() else 0
    print("begun at", step)
    if "bad" in recipe["name"]:
        print("error SD-N501: a non-finite value at step 2\\n  fix: less")
        raise SystemExit(6)
    if "killed" in recipe["name"]:
        import os
        os.kill(os.getpid(), signal.SIGKILL)
    while step < recipe["train"]["steps"]:
        step += 1
        with log.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": 0.5 * step}) + "\\n")
        if asked:
            print("saved")
            raise SystemExit(128 + asked[0])
        time.sleep(0.05 if "slow" in recipe["name"] else 0)
    (run / "scores.json").write_text(json.dumps({"toy": {"title": "t", "fd": 1.0 + recipe["seed"]}}))
    (run / "cost.json").write_text(json.dumps({"peak_memory": 5e6}))
    (run / "report.html").write_text("")
""")
"""A process that behaves as a run does: steps, scores, a report; it stops on a signal, and continues from there."""


@pytest.fixture
def write(tmp_path: Path, toys: Host) -> Callable[[str], Path]:
    """`write(text)` puts an ablation of toys (a student, a teacher, two terms) into a file."""

    def put(text: str) -> Path:
        path = tmp_path / "abl.toml"
        path.write_text(TOY_PAIR_RECIPE + SCORED + dedent(text), encoding="utf-8")
        return path

    return put


@pytest.fixture
def ablation(write: Callable[[str], Path]) -> Callable[..., Ablation]:
    """`ablation(text, *overrides)` is that ablation with its arms."""
    return lambda text, *overrides: expand(load(write(text), overrides))


@pytest.fixture
def pretending(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The runs of ablations are processes that pretend to train."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER, encoding="utf-8")
    real = runner.command

    def command(*arguments: object) -> list[str]:
        python, *_, recipe, out, folder, device, kind = real(*arguments)  # type: ignore[arg-type]
        return [python, str(script), recipe, out, folder, device, kind]

    monkeypatch.setattr(runner, "command", command)
    monkeypatch.setattr(runner, "POLL", 0.02)


@pytest.fixture
def finished(ablation: Callable[..., Ablation], tmp_path: Path) -> Path:
    """The folder of a finished ablation whose runs hold scores, a loss, an image and their versions."""
    plan = make_plan(ablation(PUBLISHABLE), tmp_path / "runs")
    plan.folder.mkdir(parents=True)
    leaks = {"leaks": {"found": [], "unchecked": "too large to search"}}
    planned = plan.record().to_json()
    planned["arms"] = [{**arm, **leaks} for arm in planned["arms"]]
    (plan.folder / "plan.json").write_text(json.dumps(planned))
    for run in plan.needed:
        (run.folder / "samples").mkdir(parents=True)
        log = [{"step": k, "seconds": 0.5 * k, "loss/denoise": 1 / k + run.seed} for k in range(1, 5)]
        log.append({"step": 4, "seconds": 2.0, "score/toy.fd": 1.0 + run.seed})
        (run.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log))
        (run.folder / "scores.json").write_text(json.dumps({"toy": {"fd": 1.0 + run.seed}}))
        (run.folder / "recipe.resolved.json").write_text(json.dumps(run.recipe.to_json()))
        (run.folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2"}}))
        (run.folder / "samples" / "step-000004.png").write_bytes(image(run.seed))
        (run.folder / "report.html").touch()
    return plan.folder


def image(shade: int) -> bytes:
    """A PNG."""
    buffer = BytesIO()
    Image.new("RGB", (20, 10), (shade, 30, 30)).save(buffer, format="PNG")
    return buffer.getvalue()
