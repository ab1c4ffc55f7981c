"""Ablations of toys, and processes that pretend to train."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import dedent

import pytest
from PIL import Image

from sddit.ablations import runner
from sddit.ablations.expand import Ablation, expand
from sddit.ablations.plan import make_plan
from sddit.cli.app import call
from sddit.plugins import Host
from sddit.recipes.merge import load
from sddit.testing import TOY_PAIR_RECIPE

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
"""A process that behaves as a run does: steps, scores, a report; it stops on a signal, and goes on from there."""


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
    """The folder of a finished ablation whose runs hold scores, a loss, a picture and their versions."""
    plan = make_plan(ablation(PUBLISHABLE), tmp_path / "runs")
    plan.folder.mkdir(parents=True)
    leaks = {"leaks": {"found": [], "unchecked": "too large to search"}}
    planned = plan.to_json()
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
        (run.folder / "samples" / "step-000004.png").write_bytes(picture(run.seed))
        (run.folder / "report.html").touch()
    return plan.folder


def picture(shade: int) -> bytes:
    """A PNG."""
    buffer = BytesIO()
    Image.new("RGB", (20, 10), (shade, 30, 30)).save(buffer, format="PNG")
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


@pytest.fixture
def sddit_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """`sddit_run("-n", path)` in the test's folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        status = call([str(argument) for argument in arguments])
        return Said(status, *capsys.readouterr())

    return run
