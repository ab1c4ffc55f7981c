#!/usr/bin/env python3
"""Run every check that needs a GPU and print a Markdown table for `tools/gpu_checks.md`.

    python tools/gpu_checks.py                 all of it
    python tools/gpu_checks.py --only kernels train

Without a CUDA device it reports that nothing was checked and exits with status 0; a failed check exits with status 6.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sddit.cli.script import run_script
from sddit.diffusion.draws import generator
from sddit.errors import describe_exception
from sddit.generation import generate, of_classes
from sddit.interfaces import CheckContext, Measurement
from sddit.plugins.host import host
from sddit.recipes.costs import plan
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.storage.checkpoints import Store
from sddit.storage.tensors import unpack
from sddit.testing.toys import plugin as toys
from sddit.training.benchmark import seconds_per_call
from sddit.training.build import build_session
from sddit.training.loop import take_step, training_mode
from sddit.training.session import Session
from sddit.training.state import checkpoint_files, restore
from sddit.training.step_metrics import StepResult
from sddit.verify import verify
from sddit.verify.leak_detector import fill
from sddit.verify.published import folders

FAILED = 6  # exit status of wrong numbers, as sddit-run has it
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table."""

    of: str
    what: str
    measured: str
    bound: str
    verdict: str


def line(of: str, found: Measurement) -> Line:
    """Return a measurement as a row."""
    bound = f"{found.relation} {found.tolerance:.3g}"
    return Line(of, found.what, f"{found.value:.3g}", bound, "pass" if found.holds else "FAIL")


def verified(device: Device) -> Iterator[Line]:
    """Run `sddit-run verify --full` on the device: kernels forward and backward, draws, gradients, leaks."""
    for row in verify(CheckContext(device=device, full=True, fixtures=folders(None))):
        of = f"{row.of}: {row.check}"
        yield line(of, row.measurement) if row.measurement else Line(of, row.reason, "", "", row.verdict)


STEPS = 20
SMALL = ("train.steps=20", "train.batch=32", "optimizer.warmup=0", "train.save_every=10", "train.log_every=5")
SAMPLED = ("evaluate.samples=40", "evaluate.previews=2", "evaluate.per_class=2", "evaluate.kid_subsets=2")
PRECISIONS: dict[str, float] = {"fp32": 1e-3, "bf16": 5e-2}
"""Relative tolerance between a step on the GPU and on the CPU: sums run in another order, and bf16 rounds."""


def small(*overrides: str) -> Recipe:
    """Return the quickstart, 20 steps of 32 images."""
    return resolve("quickstart", [*SMALL, *overrides])


def after(recipe: Recipe, device: Device, steps: int) -> tuple[Session, list[StepResult]]:
    """Return a session that has taken `steps` steps, and the result of each."""
    session = build_session(recipe, torch.device(device))
    return session, advance(session, steps)


def advance(session: Session, steps: int) -> list[StepResult]:
    with training_mode(session):
        return [take_step(session) for _ in range(steps)]


def weights(session: Session) -> Tensor:
    """Return all trained parameters as one float64 vector on the CPU."""
    return torch.cat([p.detach().double().flatten().cpu() for p in session.student.parameters()])


def apart(one: Tensor, two: Tensor) -> float:
    """Return the norm of the difference, relative to the second."""
    return float((one - two).norm() / two.norm())


def trained(device: Device) -> Iterator[Line]:
    """Train the quickstart for 20 steps on the device: against the CPU, compiled, and resumed."""
    for precision, bound in PRECISIONS.items():
        recipe = small(f"train.precision={precision}")
        there, steps = after(recipe, device, STEPS)
        finite = float(weights(there).isfinite().all())
        yield line("20 steps", Measurement(f"{precision}: all weights finite", finite, 1, ">="))
        _, here = after(recipe, "cpu", 1)
        yield from compare_steps(f"first step, {precision}, against the CPU's", steps[0], here[0], bound)
        compiled, first = after(small(f"train.precision={precision}", "train.compile=true"), device, STEPS)
        yield from compare_steps(f"first step, {precision}, compiled against not compiled", first[0], steps[0], bound)
        finite = float(weights(compiled).isfinite().all())
        yield line("20 steps", Measurement(f"{precision}, compiled: all weights finite", finite, 1, ">="))
        again = apart(weights(resumed(recipe, device)), weights(there))
        yield line("10 steps, a checkpoint, 10 more", Measurement(f"{precision}: weights", again, bound))


def compare_steps(of: str, one: StepResult, two: StepResult, bound: float) -> Iterator[Line]:
    """Yield the terms and the gradient norm of two steps."""
    pairs = {f"loss {label}": (one.metrics.losses[label], two.metrics.losses[label]) for label in two.metrics.losses}
    for what, (mine, theirs) in {**pairs, "gradient norm": (one.grad_norm, two.grad_norm)}.items():
        yield line(of, Measurement(what, abs(float(mine) / float(theirs) - 1), bound))


def resumed(recipe: Recipe, device: Device) -> Session:
    """Return a session that took half of the steps, restored from a checkpoint of another one, and took the rest."""
    half, _ = after(recipe, device, STEPS // 2)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "checkpoints", keep=1)
        store.save(half.step, checkpoint_files(half, {}))
        session = build_session(recipe, torch.device(device))
        found = store.latest()
        assert found is not None
        restore(session, found)
    advance(session, STEPS - session.step)
    return session


def command(device: Device) -> Iterator[Line]:
    """Run the full command as a user types it: train, sample, score, report; then again, with nothing left to do."""
    for precision in PRECISIONS:
        words = ["quickstart", *SMALL, *SAMPLED, "sampler.steps=4", f"train.precision={precision}", "--device", device]
        with tempfile.TemporaryDirectory() as folder:
            for what in ("from nothing to a report", "again: nothing to do"):
                done = subprocess.run(
                    [sys.executable, "-m", "sddit", *words, "--out", folder],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                last = (done.stderr.strip().splitlines() or ["no output"])[0] if done.returncode else ""
                found = Measurement(f"{precision}: exit status, {what} {last}".rstrip(), done.returncode, 0)
                yield line("sddit-run quickstart", found)


def sampled(device: Device) -> Iterator[Line]:
    """Compare images sampled on the device and on the CPU from the same weights and keys."""
    recipe = small("guidance.name=cfg", "guidance.scale=1.5")
    session = build_session(recipe, torch.device("cpu"))
    fill(session.student)
    request = of_classes([0, 3, 7], 4, recipe.shapes.num_classes, recipe.seed)
    images = {}
    for where in ("cpu", device):
        backbone = session.student.backbone.to(where)
        images[where] = generate(backbone, session.schedule, recipe, request).cpu()
    yield line("sampling", Measurement("fp32: images against the CPU's", apart(images[device], images["cpu"]), 1e-3))
    shuffled = apart(images[device].flip(0), images["cpu"])
    yield line("sampling", Measurement("control: other images", shuffled, 1e-2, ">="))


SIZES = {"S": 256, "B": 256, "L": 128, "XL": 64}
"""Published sizes, and the batch size of one step."""
SPEED = """
[backbone]
name = "dit"
size = "{size}"
patch = 2
[noise_schedule]
name = "edm"
[pair_sampler]
name = "single"
[loss.denoise]
name = "denoising"
[sampler]
name = "heun"
[dataset]
name = "toy"
size = 32
channels = 4
images = 512
[train]
batch = {batch}
precision = "bf16"
compile = {compile}
[ema.main]
decay = 0.9999
"""


def speed(device: Device) -> Iterator[Line]:
    """Time training steps of DiT-S/2 to XL/2 on latents of 32x32x4 in bf16, optimizer and EMA included; fraction of the
    peak.
    """
    torch.set_float32_matmul_precision("high")
    peak = product(device)
    yield Line("speed", "bf16 product of 8192 x 8192 x 8192", f"{peak / 1e12:.0f} TFLOP/s", "", "")
    if "toy" not in host().rows:
        host().add("toy", toys)
    for size, batch in SIZES.items():
        for compiled in ("false", "true"):
            recipe = written(SPEED.format(size=size, batch=batch, compile=compiled))
            per_second = images_per_second(recipe, device)
            flops = plan(recipe).flops_per_image
            share = "" if flops is None else f", {per_second * flops / peak:.0%} of the product"
            what = f"DiT-{size}/2, batch {batch}{', compiled' if compiled == 'true' else ''}"
            yield Line("speed", what, f"{per_second:,.0f} images/s{share}", "", "")


def written(text: str) -> Recipe:
    """Return a recipe from its text."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speed.toml"
        file.write_text(text, encoding="utf-8")
        return resolve(file)


class Cached:
    """A data set that returns the same batch every time, so that only the network is timed."""

    def __init__(self, session: Session) -> None:
        self.facts, self.size = session.dataset.facts, len(session.dataset)
        x0, labels = session.dataset.fetch(list(range(session.recipe.train.batch)))
        self.batch = x0.to(session.device), labels.to(session.device)

    def __len__(self) -> int:
        return self.size

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.batch

    def to_images(self, x: Tensor) -> Tensor:
        raise NotImplementedError("not used")


def images_per_second(recipe: Recipe, device: Device) -> float:
    """Return the median of five turns of ten steps, after a warm-up that compiles."""
    session = build_session(recipe, torch.device(device))
    session.dataset = Cached(session)

    def step() -> None:
        take_step(session)
        session.step = 1  # not 0: there the ratio of gradients would be measured

    with training_mode(session):
        seconds_per_call(step, 3, session.device)
        seconds = statistics.median(seconds_per_call(step, 10, session.device) for _ in range(5))
    return recipe.train.batch / seconds


def product(device: Device, side: int = 8192) -> float:
    """Return the FLOP/s of a large bf16 matrix product, the best that this device can do."""
    numbers = torch.randn(side, side, generator=generator(0, "gpu_checks"))
    a, b = (numbers.to(device, torch.bfloat16) for _ in range(2))
    seconds_per_call(lambda: a @ b, 3, torch.device(device))
    return 2 * side**3 / statistics.median(seconds_per_call(lambda: a @ b, 10, torch.device(device)) for _ in range(5))


def several(device: Device) -> Iterator[Line]:
    """Compare the weights after ten steps of two processes, replicated and sharded, with those of one process."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        yield Line("processes", "two processes against one", "one device is here", "", "skipped")
        return
    with tempfile.TemporaryDirectory() as folder:
        alone = weights_after(device, Path(folder, "one"), "--nproc", "1")
        for kind in ("ddp", "fsdp"):
            shared = weights_after(device, Path(folder, kind), "--nproc", "2", f"train.distributed={kind}")
            worst = max(float((alone[name] - shared[name]).norm() / (1e-12 + alone[name].norm())) for name in alone)
            yield line("processes", Measurement(f"{kind}: weights of 2 processes against those of 1", worst, 1e-3))


def weights_after(device: Device, out: Path, *words: str) -> dict[str, Tensor]:
    """Return the weights that a command leaves after ten steps of the quickstart."""
    small = [*SMALL[1:], "train.steps=10", "evaluate.samples=8", "evaluate.previews=0", "evaluate.features=[]"]
    subprocess.run(
        [sys.executable, "-m", "sddit", "quickstart", *small, *words, "--device", device, "--out", str(out)],
        capture_output=True,
        check=True,
    )
    (run,) = out.iterdir()
    found = Store(run / "checkpoints", keep=2).latest()
    assert found is not None
    return unpack(found.read("model.safetensors"))


SECTIONS: dict[str, Callable[[Device], Iterator[Line]]] = {
    "kernels": verified,
    "train": trained,
    "command": command,
    "sampling": sampled,
    "processes": several,
    "speed": speed,
}


def machine() -> str:
    """Return a description of the machine."""
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # untyped in torch
    parts = [torch.cuda.get_device_name(), f"torch {torch.__version__}", f"CUDA {torch.version.cuda}", f"cuDNN {cudnn}"]
    return ", ".join([*parts, time.strftime("%Y-%m-%d")])


def run(sections: Sequence[str], device: Device) -> list[Line]:
    """Return the rows of the chosen sections. A section that raises becomes a failed row, and the next one runs."""
    lines: list[Line] = []
    for name in sections:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            lines.extend(SECTIONS[name](device))
        except Exception as failure:
            lines.append(Line(name, describe_exception(failure), "", "", "FAIL"))
    return lines


def markdown(lines: Sequence[Line]) -> str:
    """Return a table; bars inside a cell are escaped."""
    rows = [("of", "what", "measured", "bound", "verdict"), ("---",) * 5]
    rows += [(one.of, one.what, one.measured, one.bound, one.verdict) for one in lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="Some of the sections."
    )
    only = parser.parse_args(arguments).only
    if not torch.cuda.is_available():
        print("no CUDA device is usable here: nothing was checked")
        return 0
    lines = run(only, "cuda")
    failed = sum(one.verdict == "FAIL" for one in lines)
    skipped = sum(one.verdict == "skipped" for one in lines)
    print(f"{machine()}\n\n{markdown(lines)}\n\n{len(lines)} rows, {failed} failed, {skipped} skipped")
    return FAILED if failed else 0


if __name__ == "__main__":
    run_script(main)
