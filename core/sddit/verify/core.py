"""Check draws, masks, gradients, checkpoints and leaks, which concern every method, on the toys of `sddit.testing`."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from sddit.data.declared import DeclaredParams
from sddit.data.preview import DeclaredSplit
from sddit.diffusion import masking as mask
from sddit.diffusion.draws import KeyedDraws, generator, philox
from sddit.errors import SdditError
from sddit.interfaces import CheckContext, CheckSkipped, Measurement
from sddit.recipes import search as lookup
from sddit.recipes.costs import plan
from sddit.recipes.merge import load
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.storage.checkpoints import Store
from sddit.storage.manifest import BrokenCheckpoint
from sddit.storage.manifest import verify as verify_sealed
from sddit.testing import TOY_PAIR_RECIPE, toy_host
from sddit.training.build import build_session
from sddit.training.loop import accumulate_gradients, take_step, training_mode
from sddit.training.session import Session
from sddit.training.state import checkpoint_files, restore
from sddit.verify.leak_detector import IMAGES, leak

MAX_STANDARD_ERRORS = 5.0
"""Bound of each statistical check."""

KNOWN_ANSWERS = (  # of Philox 4x32-10, published with the Random123 library: counter, key, output
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def num_different(one: Tensor, two: Tensor) -> float:
    """Return the number of elements that differ; infinity if the shapes do."""
    return float((one != two).sum()) if one.shape == two.shape else math.inf


def draws(context: CheckContext) -> Iterator[Measurement]:
    """Check the generator: its published answers, independence of batch and device, mean and variance."""
    wrong = 0.0
    for counter, key, answer in KNOWN_ANSWERS:
        made = philox(torch.tensor(counter, device=context.device)[:, None], key)[:, 0].cpu()
        wrong += num_different(made, torch.tensor(answer))
    yield Measurement("words that are not Philox's published answers", wrong, 0)

    ids = torch.arange(100, 116, device=context.device)
    whole = KeyedDraws(7, 3, ids).normal("noise", (3, 5))
    parts = torch.cat([KeyedDraws(7, 3, part).normal("noise", (3, 5)) for part in torch.split(ids, 3)])
    yield Measurement("numbers that depend on the batch around them", num_different(whole, parts), 0)

    if context.device != "cpu":
        on_cpu = KeyedDraws(7, 3, ids.cpu()).uniform("noise", (64,))
        there = KeyedDraws(7, 3, ids).uniform("noise", (64,)).cpu()
        yield Measurement(
            f"uniform numbers that differ between cpu and {context.device}", num_different(on_cpu, there), 0
        )

    many = KeyedDraws(1, 0, torch.arange(256, device=context.device)).normal("noise", (256,)).double().flatten()
    n = many.numel()
    yield Measurement(
        "normal numbers: mean, in standard errors", abs(float(many.mean())) * math.sqrt(n), MAX_STANDARD_ERRORS
    )
    spread = abs(float(many.var()) - 1) * math.sqrt(n / 2)
    yield Measurement("normal numbers: variance, in standard errors", spread, MAX_STANDARD_ERRORS)


def masks(context: CheckContext) -> Iterator[Measurement]:
    """Check masks: the number of visible tokens, their rising order, and equal probability of each token."""
    wrong = sum(
        mask.keep_count(tokens, percent / 100) != math.floor(tokens * (1 - Fraction(percent, 100)))
        for tokens in range(1, 257)
        for percent in range(100)
        if math.floor(tokens * (1 - Fraction(percent, 100)))
    )
    yield Measurement("token counts that are not floor(L (1 - r)), L to 256, r in hundredths", wrong, 0)

    rows, kept = 4096, 24
    drawn = KeyedDraws(5, 0, torch.arange(rows, device=context.device))
    for shape in get_args(mask.MaskShape):
        visible = mask.draw_mask(drawn, "mask", grid=(6, 8), ratio=0.5, shape=shape)
        assert visible is not None
        unsorted = float((visible.diff(dim=1) <= 0).sum()) + rows * abs(visible.shape[1] - kept)
        yield Measurement(f"{shape}: places that are not {kept} rising token numbers", unsorted, 0)
        if shape == "random":  # a block contains tokens at the border less often
            often = torch.bincount(visible.flatten(), minlength=48).double() / rows
            error = math.sqrt(0.25 / rows)
            yield Measurement(
                "random: fraction of each token, in standard errors",
                float((often - 0.5).abs().max()) / error,
                MAX_STANDARD_ERRORS,
            )


def toy(*overrides: str) -> Recipe:
    """Return the toy recipe with a masked student, a teacher and two losses."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "toy.toml"
        file.write_text(TOY_PAIR_RECIPE, encoding="utf-8")
        return resolve(file, ["ema.main.decay=0.9", *overrides], host=toy_host())


def gradients(context: CheckContext) -> Iterator[Measurement]:
    """Compare gradients with and without micro-batches, and in float64, float32 and bfloat16."""
    whole = {precision: gradient(context, precision) for precision in ("fp64", "fp32", "bf16")}
    for precision, bound in (("fp64", 1e-12), ("fp32", 1e-5)):
        for micro in (1, 2, 4):
            parts = gradient(context, precision, f"train.micro_batch={micro}")
            shown = f"{precision}: 8 images at once and {micro} at a time"
            yield Measurement(shown, relative_difference(parts, whole[precision]), bound)
    yield Measurement("fp32 next to fp64", relative_difference(whole["fp32"], whole["fp64"]), 1e-5)
    yield Measurement("bf16 next to fp32", relative_difference(whole["bf16"], whole["fp32"]), 3e-2)


def gradient(context: CheckContext, precision: str, *overrides: str) -> Tensor:
    """Return the gradient of the toy's first step, flattened to one float64 vector. The weights are float32 numbers."""
    session = build_session(toy(f"train.precision={precision}", *overrides), torch.device(context.device))
    assert session.teacher is not None
    session.student.load_state_dict(build_session(toy(), torch.device(context.device)).student.state_dict())
    session.teacher.update(session.student.backbone, session.student.terms, momentum=0.0)
    with training_mode(session):
        accumulate_gradients(session, session.objective.weights(0))
    found = [p.grad.double().flatten() for p in session.student.parameters() if p.grad is not None]
    return torch.cat(found).cpu()


def relative_difference(one: Tensor, two: Tensor) -> float:
    """Return the norm of the difference of two vectors relative to that of the second."""
    return float((one - two).norm() / two.norm())


def checkpoints(context: CheckContext) -> Iterator[Measurement]:
    """Compare four steps with two, a restored checkpoint and two more: bitwise equal. On the CPU."""
    straight = session_after(4)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "checkpoints", keep=2)
        place = store.save(2, checkpoint_files(session_after(2), {}))
        resumed = session_after(0)
        found = store.latest()
        assert found is not None
        restore(resumed, found)
        yield Measurement("tensors of the restored run that differ", num_changed_tensors(resumed, session_after(2)), 0)
        advance(resumed, 2)
        yield Measurement("tensors that differ two steps later", num_changed_tensors(resumed, straight), 0)
        forgetful = session_after(0)
        restore(forgetful, found)
        forgetful.optimizer.state.clear()
        advance(forgetful, 2)
        yield Measurement(
            "control: they differ without the optimizer's state", num_changed_tensors(forgetful, straight), 1, ">="
        )
        yield Measurement("fraction of flipped bits that are noticed", fraction_detected(place), 1, ">=")


def session_after(steps: int) -> Session:
    """Return a toy run after this number of steps."""
    session = build_session(toy(), torch.device("cpu"))
    advance(session, steps)
    return session


def advance(session: Session, steps: int) -> None:
    with training_mode(session):
        for _ in range(steps):
            take_step(session)


def state_of(session: Session) -> dict[str, Tensor]:
    """Return every tensor on which the next step depends, by name."""
    parts: dict[str, Mapping[str, Tensor]] = {"student": session.student.state_dict()}
    parts |= {f"ema.{label}": ema.module.state_dict() for label, ema in session.emas.items()}
    if session.teacher is not None:
        parts["teacher"] = session.teacher.tensors()
    moments = session.optimizer.state_dict()["state"]
    parts |= {f"optimizer.{i}": {k: torch.as_tensor(v) for k, v in entry.items()} for i, entry in moments.items()}
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def num_changed_tensors(one: Session, two: Session) -> float:
    """Return the number of tensors that differ between two runs."""
    mine, theirs = state_of(one), state_of(two)
    common = mine.keys() & theirs.keys()
    return len(mine.keys() ^ theirs.keys()) + sum(num_different(mine[name], theirs[name]) > 0 for name in common)


def fraction_detected(place: Path) -> float:
    """Flip three bits in each file of a checkpoint, one at a time, and return the fraction that is detected."""
    outcomes = []
    for file in sorted(place.iterdir()):
        size = file.stat().st_size
        for offset in (0, size // 2, size - 1):
            copy = place.with_name("flipped")
            shutil.copytree(place, copy)
            content = bytearray(file.read_bytes())
            content[offset] ^= 1
            (copy / file.name).write_bytes(content)
            outcomes.append(is_rejected(copy))
            shutil.rmtree(copy)
    return sum(outcomes) / len(outcomes)


def is_rejected(place: Path) -> bool:
    """Return whether a checkpoint is rejected as broken."""
    try:
        verify_sealed(place)
    except BrokenCheckpoint:
        return True
    return False


BASE_FOLDER = "base"
"""Folder of the recipes that others extend."""
EXTERNAL_CODES = ("SD-D", "SD-C")
"""Prefixes of the codes of data and start weights that are missing."""
MAX_PARAMETERS = 5_000_000
"""Size of a network above which only `--full` tests its recipe."""
DECLARED_DATA = (
    "dataset.name=sddit/declared",
    "dataset.image=[4, 16, 16]",
    "dataset.classes=10",
    "dataset.label_drop=0.1",
    "evaluate.features=[]",
)
"""Overrides that replace the data with small latents, whose values are noise."""
NARROW_NETWORK = ("backbone.size=", "backbone.depth=12", "backbone.width=32", "backbone.heads=4")
"""Overrides that reduce the width. The depth suffices for the decoders and skips of the shipped recipes."""
WITHOUT_START = "start=false"
"""Override that removes the run from which a second stage starts."""


class NoiseImages(DeclaredSplit):
    """Images of noise in the declared shape, as many as the leak detector uses."""

    def __len__(self) -> int:
        return IMAGES

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(ids, dtype=torch.int64)
        images = torch.randn((len(self), *self.facts.image), generator=generator(0, "imagined"))
        return images[chosen], chosen % len(self.facts.class_names)


def leaks(context: CheckContext) -> Iterator[Measurement]:
    """Test the shipped recipes for leaks: those with a small network whose data are available.

    With `full` also all others, with a narrow network of the same structure and images of noise.
    """
    folder, skipped = lookup.shipped(), []
    for path in sorted(path for path in folder.rglob("*.toml") if path.parent.name != BASE_FOLDER):
        recipe = available_recipe(path)
        if recipe is not None:
            yield from leak(recipe, context)
        elif context.full:
            narrow = narrow_recipe(path)
            assert isinstance(narrow.dataset.params, DeclaredParams)
            yield from leak(narrow, context, images=NoiseImages(narrow.dataset.params))
        else:
            skipped.append(path.relative_to(folder).with_suffix("").as_posix())
    if skipped:
        raise CheckSkipped(
            f"{len(skipped)} recipes are large, or their data or start weights are missing, such as {skipped[0]}: "
            "--full tests them with narrow networks and images of noise"
        )


def available_recipe(path: Path) -> Recipe | None:
    """Return a recipe unchanged; None if its data or start weights are missing or its network is large."""
    try:
        recipe = resolve(path)
    except SdditError as refusal:
        if not any(problem.code.startswith(EXTERNAL_CODES) for problem in refusal.problems):
            raise
        return None
    return recipe if (plan(recipe).backbone_parameters or math.inf) < MAX_PARAMETERS else None


def narrow_recipe(path: Path) -> Recipe:
    """Return a recipe with other data, a narrow network and random start weights, but its own losses and views."""
    has_start = "start" in load(path).tables
    recipe = resolve(path, (*DECLARED_DATA, *NARROW_NETWORK, *((WITHOUT_START,) if has_start else ())))
    return replace(recipe, name=f"{recipe.name}, narrow and on noise")
