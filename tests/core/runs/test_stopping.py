"""Stopping a run, wherever it is: the step is finished and saved, the status is the documented one, nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sddit.evaluation import sample_images
from sddit.plugins.host import using_host
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.runs import callbacks, pipeline, setup
from sddit.runs.pipeline import RunResult, run
from sddit.storage import checkpoints, sample_parts
from sddit.storage import manifest as sealed
from sddit.storage.checkpoints import Store
from sddit.storage.metrics_log import read_metrics
from sddit.testing.toys.plugin import TOY_PAIR_RECIPE, toy_host
from sddit.training import loop

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138}
MORE = """
save_every = 2
log_every = 1
[ema.main]
decay = 0.9
[evaluate]
samples = 12
features = ["toy"]
during = 2
previews = 2
per_class = 2
kid_subsets = 2
kid_subset_size = 4
neighbours = 1
"""


@pytest.fixture(scope="module")
def recipe_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Recipe]]:
    path = tmp_path_factory.mktemp("recipe") / "toy.toml"
    path.write_text(TOY_PAIR_RECIPE.replace("steps = 4\nbatch = 8\n", "steps = 6\nbatch = 8" + MORE))
    with using_host(toy_host()) as host:
        yield lambda *overrides: resolve(path, overrides, host=host)


def go(recipe: Recipe, out: Path) -> RunResult:
    return run(recipe, out=out, device="cpu", progress=Progress())


Point = Callable[[pytest.MonkeyPatch, Callable[[], None]], None]
"""Arranges that something is called where a run has got to."""


def before(owner: Any, name: str, turn: int = 1) -> Point:
    """When a function is called for the `turn`-th time."""

    def arrange(patch: pytest.MonkeyPatch, alarm: Callable[[], None]) -> None:
        whole, calls = getattr(owner, name), iter(range(1, 10**6))

        def wrapped(*given: Any, **named: Any) -> Any:
            if next(calls) == turn:
                alarm()
            return whole(*given, **named)

        patch.setattr(owner, name, wrapped)

    return arrange


POINTS: dict[str, tuple[Point, int]] = {
    "start-up": (before(setup, "build_session"), 0),
    "mid-step": (before(loop, "forward", 3), 3),
    "between steps": (before(callbacks.RunCallbacks, "logged", 3), 3),
    "a save": (before(checkpoints, "stage", 2), 4),
    "the end of a save": (before(checkpoints.Store, "_confirm", 2), 4),
    "a preview": (before(sample_images, "sample_session"), 3),
    "scores while training": (before(callbacks, "score_parts", 2), 4),
    "sampling": (before(sample_images, "write_samples"), 6),
    "between parts of samples": (before(sample_parts.SampleParts, "append", 1), 6),
    "scoring": (before(pipeline, "score_kept"), 6),
    "the report": (before(pipeline, "write_run_report"), 6),
}
"""What the run is at, how that is known, and how many of its 6 steps are then taken."""


@pytest.fixture(scope="module")
def undisturbed(recipe_of: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run holds that no one stops."""
    return held(go(recipe_of(), tmp_path_factory.mktemp("whole")).folder)


def held(folder: Path) -> dict[str, Any]:
    """All that a finished run holds and that has no clock in it."""
    clocks = {"seconds", "images_per_second"}
    rows = [{k: v for k, v in row.items() if k not in clocks} for row in read_metrics(folder / "metrics.jsonl")]
    files = [
        *(folder / "checkpoints/step-000006").glob("*.safetensors"),
        *(folder / "samples").iterdir(),
        folder / "scores.json",
    ]
    return {"rows": rows, **{str(path.relative_to(folder)): path.read_bytes() for path in files}}


def assert_valid(folder: Path, *, swept: bool = True) -> None:
    """Nothing broken, and where the run has been `swept` nothing half-written."""
    bad = ("broken-", ".tmp-", ".del-") if swept else ("broken-",)
    assert not [path for path in folder.rglob("*") if path.name.startswith(bad)]
    store = Store(folder / "checkpoints", keep=9)
    for step in store.steps():
        sealed.verify(store.path_of(step))


MODES = (
    "false",
    "true",
)  # of train.save_async: a save next to the steps may be overtaken by a step before it is stopped
ONE = [
    (point, number, "false") for point in POINTS for number in STATUS
] + [(point, signal.SIGTERM, "true") for point in POINTS]  # fmt: skip


@pytest.mark.parametrize(("point", "number", "mode"), ONE)
def test_one_signal(
    point: str,
    number: signal.Signals,
    mode: str,
    recipe_of: Callable[..., Recipe],
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrange, steps = POINTS[point]
    recipe = recipe_of(f"train.save_async={mode}")
    with monkeypatch.context() as patch:
        arrange(patch, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as stopped:
            go(recipe, tmp_path)
    assert stopped.value.code == STATUS[number]
    (folder,) = tmp_path.iterdir()
    assert_valid(folder)
    saved = newest(folder)
    assert saved == steps or (mode == "true" and saved > steps), "the step under way is finished and saved"
    assert held(go(recipe, tmp_path).folder) == undisturbed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", POINTS)
def test_two_signals(
    point: str,
    mode: str,
    recipe_of: Callable[..., Recipe],
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def twice() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)

    arrange, steps = POINTS[point]
    recipe = recipe_of(f"train.save_async={mode}")
    with monkeypatch.context() as patch:
        arrange(patch, twice)
        with pytest.raises(SystemExit) as stopped:
            go(recipe, tmp_path)
    as_if_its_process_had_ended()
    assert stopped.value.code in (130, 143)  # 143 where the first one ended it
    (folder,) = tmp_path.iterdir()
    assert_valid(
        folder, swept=False
    )  # the second one may cut short the sweeping after the first: the next start sweeps
    if mode == "false":
        assert newest(folder) >= steps - 2, "no more is lost than the steps since the last save"
    assert held(go(recipe, tmp_path).folder) == undisturbed
    assert_valid(folder)


def as_if_its_process_had_ended() -> None:
    """Finish what the second signal interrupted: a save in the background, the end of a no_grad."""
    for thread in threading.enumerate():
        if thread.name.startswith("save-"):
            thread.join()
    torch.set_grad_enabled(True)


def newest(folder: Path) -> int:
    """The step of the newest checkpoint; 0: there is none."""
    return max(Store(folder / "checkpoints", keep=2).steps(), default=0)


def test_what_a_run_holds_is_compared(
    recipe_of: Callable[..., Recipe], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """The control: another seed leaves other rows, weights, samples, previews and scores."""
    other = held(go(recipe_of("seed=1"), tmp_path).folder)
    assert other.keys() == undisturbed.keys()
    assert [name for name in other if other[name] == undisturbed[name]] == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_command_that_has_hardly_begun(number: signal.Signals, status: int) -> None:
    invoke = f"app.cli.invoke = lambda _: os.kill(os.getpid(), {int(number)})"
    program = f"import os, sddit.cli.app as app; {invoke}; app.main(['plugins'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_a_plugin_loads_is_not_a_fault_of_the_plugin(number: signal.Signals, tmp_path: Path) -> None:
    """A plugin may import for seconds; a job script must still see the exit status of a stop, not of a fault."""
    (tmp_path / "slow.py").write_text(f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(60)\n")
    (tmp_path / "slow.toml").write_text('plugins = ["./slow.py"]\n')
    ended = subprocess.run(
        [sys.executable, "-m", "sddit", "slow.toml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == STATUS[number]
    assert "error" not in ended.stderr
