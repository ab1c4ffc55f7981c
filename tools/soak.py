#!/usr/bin/env python3
"""Stress-test checkpoints, runs, memory and speed: kill and stop runs repeatedly, and train for many steps.

    python tools/soak.py                                    everything at full size: some hours
    python tools/soak.py --writer-kills 50 --run-kills 6    only these two: minutes
    python tools/soak.py --steps 20000 --recipe recipes/quickstart.toml train.batch=32

writer: a process without torch saves one checkpoint after another, in the foreground or background, and is killed at
    random moments.
naive: the same kills of a naive writer, which they must break.
run: a recipe is killed while it starts, trains, saves, samples and scores, resumed each time, and compared with an
    uninterrupted run.
stops: a run gets SIGTERM at random moments and is resumed; the time until it exits is measured.
steps: one long run, whose memory and time per step are recorded.

Each child is forked from a process that has imported what it needs; otherwise it is what a user starts.

The last line is the figures as JSON; exit status 0: nothing was broken or lost, and every bit was the same.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[1]
SMALL = (
    "train.batch=16",
    "train.save_every=5",
    "train.log_every=1",
    "train.threads=1",
    "optimizer.warmup=0",
    "evaluate.samples=30",
    "evaluate.previews=3",
    "evaluate.per_class=1",
    "evaluate.during=1",
    'evaluate.features=["classifier"]',
    "sampler.steps=4",
)
"""Settings that make a digits recipe quick while keeping every phase in which a run can be killed."""

Say = Callable[[str], None]


def quiet(text: str) -> None:
    """Print nothing."""


FORK_SERVER = """
import json, os, sys

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # one write: a kill cuts no line, and no two lines mix

{program}

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            live(*json.loads(line))
        except SystemExit as end:
            os._exit(int(end.code or 0))
        os._exit(0)
    say("started", child)
    say("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class ForkServer:
    """A process that has imported what its children need and forks one child at a time.

    Each child runs the function `live` of `program`.
    """

    def __init__(self, program: str) -> None:
        env = {name: value for name, value in os.environ.items() if name != "SDDIT_FAULT"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORK_SERVER.format(program=program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, cause: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # its children too, which might run forever
        self.process.communicate()

    def fork(self, *arguments: Any) -> Child:
        """Start a child that runs `live(*arguments)`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        printed: list[str] = []
        while (line := self.process.stdout.readline().split())[:1] != ["started"]:
            if not line:
                raise RuntimeError("the fork server could not start: its program fails")
            printed += line  # a quick child prints before its start is announced
        return Child(self, int(line[1]), printed)


@dataclass(slots=True)
class Child:
    """A child of a fork server."""

    server: ForkServer
    pid: int
    printed: list[str]
    status: int | None = None  # None: still running, as far as is known

    def read_word(self) -> bool:
        """Wait for the next word that the child prints; return False if the child has ended."""
        assert self.server.process.stdout is not None
        word, *rest = self.server.process.stdout.readline().split()
        if word == "ended":
            self.status = int(rest[0])
            return False
        self.printed.append(word)
        return True

    def is_alive(self) -> bool:
        """Return whether the child is still running. The fork server reaps it only after its output was read."""
        with suppress(OSError):  # once reaped, it has no status file
            return " Z " not in Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii")
        return False

    def kill(self) -> bool:
        """Send SIGKILL; return False if the process had already ended."""
        was_alive = self.is_alive()
        if was_alive:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL and was_alive

    def wait(self) -> int:
        """Wait until the child has ended and return its exit status."""
        while self.status is None and self.read_word():
            pass
        assert self.status is not None
        return self.status


SIZES = {"model.safetensors": 1_000_003, "optimizer.safetensors": 500_001, "state.json": 70}


def content(step: int) -> dict[str, bytes]:
    """Return the content of a step's checkpoint: a pure function that writers and checker share."""
    return {
        name: (hashlib.sha256(f"{step}/{name}".encode()).digest() * (size // 32 + 1))[:size]
        for name, size in SIZES.items()
    }


CONTENT = f"import hashlib\nSIZES = {SIZES!r}\n{inspect.getsource(content)}"
"""Source of `content`, for a process without torch."""

WRITER = (
    CONTENT
    + """
from pathlib import Path
from sddit.storage.checkpoints import Store
from sddit.runs.checkpointing import Saver

def live(folder, background):
    store = Store(Path(folder), keep=2)
    store.clean()
    newest = store.latest()
    saver = Saver(store, background=background)
    step = newest.step if newest else 0
    while True:
        step += 1
        saver.save(step, content(step))
        saver.wait()
        say(step)
"""
)

NAIVE = (
    CONTENT
    + """
import shutil
from pathlib import Path

def live(folder, background):
    folder = Path(folder)
    steps = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
    step = steps[-1] if steps else 0
    while True:
        step += 1
        place = folder / f"step-{step:06d}"
        place.mkdir()
        for name, data in content(step).items():
            with open(place / name, "wb") as file:
                file.write(data)
        shutil.rmtree(folder / f"step-{step - 3:06d}", ignore_errors=True)
        say(step)
"""
)
"""The negative control: a writer without atomic renames or manifests."""


@dataclass(slots=True)
class WriterFigures:
    """Results of killing a writer."""

    kills: int = 0
    checkpoints: int = 0  # that were acknowledged
    broken: int = 0  # kills after which a visible checkpoint differed from what was written
    lost: int = 0  # kills after which an acknowledged checkpoint was missing
    surplus: int = 0  # kills after which more checkpoints remained than should
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.broken == self.lost == self.surplus == 0


def kill_writer(kills: int, folder: Path, seed: int, program: str = WRITER, say: Say = quiet) -> WriterFigures:
    """Kill a writer repeatedly, each time shortly after its first save; it continues in the same folder. No torch."""
    pauses, figures, began = random.Random(seed), WriterFigures(), time.monotonic()
    with ForkServer(program) as server:
        while figures.kills < kills:
            child = server.fork(str(folder), figures.kills % 2 == 1)
            alive = bool(child.printed) or child.read_word()
            time.sleep(pauses.uniform(0.0, 0.04))
            if not (alive and child.kill()):
                raise RuntimeError(f"the writer ended on its own, with status {child.status}")
            figures.kills += 1
            figures.checkpoints += len(child.printed)
            figures.broken += broken(folder) != []
            figures.lost += visible(folder)[-1:] < [int(child.printed[-1])]
            figures.surplus += len(visible(folder)) > 3  # two to keep, and one not yet removed
            if figures.kills % 50 == 0:
                say(f"kill {figures.kills} of {kills}: {figures.broken} broken, {figures.lost} lost")
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


def visible(folder: Path) -> list[int]:
    """Return the steps whose checkpoint is visible."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def broken(folder: Path) -> list[int]:
    """Return the visible checkpoints with files other than their step's, without using the code under test."""

    def intact(step: int) -> bool:
        place = folder / f"step-{step:06d}"
        return all(
            (place / name).is_file() and (place / name).read_bytes() == data for name, data in content(step).items()
        )

    return [step for step in visible(folder) if not intact(step)]


RUNNER = """
import torch, sddit.runs.pipeline, sddit.evaluation.scores
from sddit.cli import app

def live(log, *words):
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    app.main(words)
"""


@dataclass(slots=True)
class RunFigures:
    """Results of killing a run."""

    kills: int = 0
    starts: int = 0
    broken: int = 0  # checkpoints that had to be moved aside
    lost: int = 0  # times that the newest checkpoint was older than before a kill
    same_weights: bool = False
    same_samples: bool = False
    same_log: bool = False  # rows of the metrics, except for times
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.broken == self.lost == 0 and self.same_weights and self.same_samples and self.same_log


def kill_run(recipe: Sequence[str], steps: int, kills: int, folder: Path, seed: int, say: Say = quiet) -> RunFigures:
    """Run a recipe uninterrupted, then again with kills, and compare.

    Args:
        recipe: a recipe and its overrides.
        steps: how many it trains.
        kills: a sixth of them while the program starts, a sixth after the last step, the others in steps all over the
            run.
        folder: an empty folder for both runs.
        seed: of the moments.
        say: what shows how it goes.
    """
    chance, figures, began = random.Random(seed), RunFigures(), time.monotonic()
    whole, killed, log = folder / "whole", folder / "killed", folder / "log.txt"
    with ForkServer(RUNNER) as server:

        def start(out: Path) -> Child:
            figures.starts += 1
            saving = f"train.save_async={'true' if figures.starts % 2 else 'false'}"
            return server.fork(str(log), *recipe, saving, "--out", str(out))

        if start(whole).wait() != 0:
            raise RuntimeError(log.read_text(encoding="utf-8"))
        for moment in moments(kills, steps, chance):
            newest = max(saved(killed), default=0)
            while not killed_at(start(killed), moment, killed, log, chance):
                (only_run(killed) / "report.html").unlink()  # the run finished: leave it something to do
            figures.kills += 1
            figures.lost += max(saved(killed), default=0) < newest
            say(f"kill {figures.kills} of {kills} {moment}: checkpoints {saved(killed)}, {last_step(killed)} steps")
        if start(killed).wait() != 0:
            raise RuntimeError(log.read_text(encoding="utf-8"))
    one, two = only_run(whole), only_run(killed)
    figures.broken = len(list((two / "checkpoints").glob("broken-*")))
    figures.same_weights = weights(one) == weights(two)
    figures.same_samples = image_hashes(one) == image_hashes(two)
    figures.same_log = rows(one) == rows(two)
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


@dataclass(slots=True)
class StopFigures:
    """Results of stopping a run."""

    stops: int = 0
    saved: int = 0  # stops with the documented exit status whose last step is in a checkpoint
    median_seconds: float = 0.0  # from SIGTERM to the end of the process
    largest_seconds: float = 0.0
    milliseconds_per_step: float = 0.0  # wall time of an uninterrupted step, save included
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.saved == self.stops


def stop_run(
    recipe: Sequence[str], stops: int, folder: Path, seed: int, program: str = RUNNER, say: Say = quiet
) -> StopFigures:
    """Send SIGTERM `stops` times to a run that has started to train, and resume it each time."""
    chance, figures, began = random.Random(seed), StopFigures(), time.monotonic()
    out, log, waits = folder / "stopped", folder / "stops.txt", []
    with ForkServer(program) as server:
        while figures.stops < stops:
            until = last_step(out) + chance.randint(1, 8)
            child = server.fork(str(log), *recipe, f"train.steps={ENDLESS}", "--out", str(out))
            while last_step(out) < until and child.is_alive():
                time.sleep(0.002)
            time.sleep(chance.uniform(0.0, 0.2))
            if not child.is_alive():
                raise RuntimeError(log.read_text(encoding="utf-8"))
            signalled = time.monotonic()
            os.kill(child.pid, signal.SIGTERM)
            status = child.wait()
            waits.append(time.monotonic() - signalled)
            figures.stops += 1
            figures.saved += status == STOPPED and saved(out)[-1:] == [last_step(out)]
            say(f"stop {figures.stops} of {stops}: {waits[-1]:.2f} s, status {status}, {last_step(out)} steps")
    figures.median_seconds = round(statistics.median(waits), 3)
    figures.largest_seconds = round(max(waits), 3)
    row = last_row(out)
    figures.milliseconds_per_step = round(1000 * row["seconds"] / row["step"], 1)
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


STOPPED = 128 + signal.SIGTERM
ENDLESS = 10**6  # steps, more than any of these runs takes


def moments(kills: int, steps: int, chance: random.Random) -> Iterator[str]:
    """When to kill each start: `at the start`, `in step N` rising over the run, and then `after step N`, the last."""
    starts, ends = kills // 6, kills // 6
    inside = kills - starts - ends
    for k in range(inside):
        yield f"in step {1 + int(steps * (k + chance.random()) / inside * 0.98)}"
        if k * starts // inside < (k + 1) * starts // inside:
            yield "at the start"
    yield from [f"after step {steps}"] * ends


def killed_at(child: Child, moment: str, out: Path, log: Path, chance: random.Random) -> bool:
    """Kill a child at its moment; return False if it had already ended. Raises RuntimeError if it had failed."""
    place, _, step = moment.partition(" step ")
    while step and last_step(out) < int(step) and child.is_alive():
        time.sleep(0.002)
    time.sleep(chance.uniform(0.0, {"in": 0.03, "at the start": 0.3, "after": 1.0}[place]))
    if child.kill():
        return True
    if child.status != 0:
        raise RuntimeError(log.read_text(encoding="utf-8"))
    return False


def last_row(out: Path) -> dict[str, float]:
    """Return the last complete row of the metrics of the only run in a folder, or an empty string."""
    for path in out.glob("*/metrics.jsonl"):
        for line in path.read_bytes().rpartition(b"\n")[0].splitlines()[-1:]:
            row: dict[str, float] = json.loads(line)
            return row
    return {}


def last_step(out: Path) -> int:
    """Return the step of that row."""
    return int(last_row(out).get("step", 0))


def saved(out: Path) -> list[int]:
    """Return the steps of the checkpoints of the only run in a folder."""
    return sorted(step for checkpoints in out.glob("*/checkpoints") for step in visible(checkpoints))


def only_run(out: Path) -> Path:
    """Return the only run folder in a folder."""
    (found,) = [path for path in out.iterdir() if path.is_dir()]
    return found


def weights(run: Path) -> dict[str, str]:
    """Return the hash of every tensor file of the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"))
    return {path.name: digest(path) for path in newest.glob("*.safetensors")}


def image_hashes(run: Path) -> dict[str, str]:
    """Return the hashes of the samples and of the previews."""
    return {path.name: digest(path) for path in (run / "samples").iterdir()}


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the log without its times."""
    clocks = {"seconds", "images_per_second"}
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in clocks} for line in lines]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(slots=True)
class StepFigures:
    """Results of a long run."""

    steps: int
    mebibytes: float  # of memory at the end
    mebibytes_per_1000_steps: float  # of growth, after the first tenth
    milliseconds_per_step: float  # of processor time
    drift_percent_per_1000_steps: float  # of that time, after the first tenth
    seconds: float


def soak_steps(recipe: Sequence[str], steps: int, folder: Path, say: Say = quiet) -> StepFigures:
    """Train for `steps` steps, with saves, previews and scores, and fit lines to memory and processor time."""
    import numpy as np

    from sddit.progress import Progress
    from sddit.recipes.resolve import resolve
    from sddit.runs.pipeline import run

    began = time.monotonic()
    seen: list[tuple[int, float, float]] = []  # step, MiB, seconds of processor time so far

    class Gauge(Progress):
        def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
            if seen and seen[-1][0] == done:
                return
            seen.append((done, resident(), time.process_time()))
            if done % 1000 == 0 or done == steps:
                say(f"step {done} of {steps}: {seen[-1][1]:.1f} MiB, {1e3 * seen[-1][2] / done:.2f} ms a step so far")

    overrides = [f"train.steps={steps}", *recipe[1:], f"train.log_every={max(1, steps // 200)}"]
    run(resolve(Path(recipe[0]), overrides), out=folder, device="cpu", progress=Gauge())
    step, memory, clock = np.array(seen[len(seen) // 10 :]).T
    middle, took = (step[1:] + step[:-1]) / 2, np.diff(clock) / np.diff(step)
    drift = np.polyfit(middle, took, 1)[0] / np.median(took)
    return StepFigures(
        steps=steps,
        mebibytes=round(float(memory[-1]), 1),
        mebibytes_per_1000_steps=round(float(np.polyfit(step, memory, 1)[0]) * 1000, 3),
        milliseconds_per_step=round(float(np.median(took)) * 1000, 3),
        drift_percent_per_1000_steps=round(float(drift) * 1000 * 100, 3),
        seconds=round(time.monotonic() - began, 1),
    )


def resident() -> float:
    """Return the memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of the recipe, beyond or instead of what makes it quick"
    )
    parser.add_argument("--recipe", default=str(ROOT / "recipes" / "quickstart.toml"))
    for name, full in FULL.items():
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help=f"at full size {full}")
    parser.add_argument(
        "--run-steps", type=int, metavar="N", help="steps of the run that is killed: four for each kill"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    given = parser.parse_args()
    keys = {word.partition("=")[0] for word in given.overrides}
    recipe = (given.recipe, *(word for word in SMALL if word.partition("=")[0] not in keys), *given.overrides)
    asked = {name: getattr(given, name.replace("-", "_")) for name in FULL}
    sizes = asked if any(asked.values()) else FULL
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in (name for name in FULL if sizes[name]):
            (place := Path(scratch, name)).mkdir()
            found, good = measured(name, sizes[name], recipe, given.run_steps, place, given.seed)
            figures[name] = asdict(found) | {"good": good}
    print(json.dumps(figures))
    return 0 if all(found["good"] for found in figures.values()) else 1


FULL = {"writer-kills": 1000, "naive-kills": 100, "run-kills": 100, "stops": 200, "steps": 5000}
"""The measurements and their default sizes."""


def measured(
    name: str, size: int, recipe: Sequence[str], run_steps: int | None, place: Path, seed: int
) -> tuple[Any, bool]:
    """Run one measurement in an empty folder; return its figures and whether they are as they should be."""

    def say(text: str) -> None:
        print(text, flush=True)

    if name == "writer-kills":
        writer = kill_writer(size, place, seed, say=say)
        return writer, writer.good
    if name == "naive-kills":
        naive = kill_writer(size, place, seed, NAIVE, say)
        return naive, naive.broken > 0  # otherwise these kills show nothing
    if name == "run-kills":
        steps = run_steps or 4 * size
        disturbed = kill_run((*recipe, f"train.steps={steps}"), steps, size, place, seed, say)
        return disturbed, disturbed.good
    if name == "stops":
        stopped = stop_run(recipe, size, place, seed, say=say)
        return stopped, stopped.good
    longer = [word for word in recipe if not word.startswith(("train.log_every", "train.save_every"))]
    return soak_steps(longer, size, place, say), True


if __name__ == "__main__":
    sys.exit(main())
