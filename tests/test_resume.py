"""Resume every shipped method exactly: N steps equal k steps, a kill and the rest, bit for bit, for every k.

Only the checkpoint of a killed process remains. Here a new session replaces the second process, and every tensor and
every row of the log is compared; `test_soak.py` kills real processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.recipes.resolve import resolve
from sddit.storage.checkpoints import Store
from sddit.testing.sessions import state_of
from sddit.training.build import build_session
from sddit.training.loop import train
from sddit.training.session import Session
from sddit.training.state import checkpoint_files, restore

ROOT = Path(__file__).parents[1]
STEPS = 6
SMALL = (f"train.steps={STEPS}", "train.log_every=2", "train.threads=1", "optimizer.warmup=2")
NARROW = ("backbone.width=16", "backbone.heads=2")
DIT = ("backbone.depth=2", *NARROW)
MDT = ("backbone.depth=3", "backbone.width=16", "backbone.heads=2", "backbone.decoder_depth=1")
PAIR = (*DIT, "backbone.decoder.depth=1", "backbone.decoder.width=16", "backbone.decoder.heads=2")
SD = (*PAIR, "loss.discrimination.prototypes=16", "loss.discrimination.hidden=16", "loss.discrimination.bottleneck=8")
HALF = "until=0.5, shape='step'"

RUNS: dict[str, tuple[str, ...]] = {
    "SD-DiT": ("quickstart", *SD),
    "SD-DiT, no centre": ("quickstart", *SD, "loss.discrimination.centering=none"),
    "SD-DiT, Sinkhorn": ("quickstart", *SD, "loss.discrimination.centering=sinkhorn"),
    "SD-DiT, class tokens, head frozen at first": (
        "quickstart", *SD, "backbone.cls_token=true", "loss.discrimination.cls_source=token",
        "loss.discrimination.freeze_last=3",
    ),
    "SD-DiT, accumulated": ("quickstart", *SD, "train.micro_batch=2"),
    "SD-DiT, a term that ends and one that begins": (
        "quickstart", *SD, "loss.discrimination.until=3", f"loss.denoise.weight={{start=0.5, end=1.0, {HALF}}}",
    ),
    "SD-DiT, bf16": ("quickstart", *SD, "train.precision=bf16", "train.activation_checkpointing=true"),
    "MaskDiT": ("digits/maskdit", *PAIR),
    "MaskDiT, accumulated": ("digits/maskdit", *PAIR, "train.micro_batch=4"),
    "MDT": ("digits/mdt", *MDT),
    "MDTv2": ("digits/mdtv2", *MDT),
    "MDTv2, Adan": ("digits/mdtv2", *MDT, "optimizer.name=adan", "optimizer.betas=[0.98, 0.92, 0.99]"),
    "MDTv2 under EDM, fp64": ("digits/mdtv2-edm", *MDT, "train.precision=fp64"),
    "DiT, the hybrid loss": ("digits/dit-ddpm", *DIT),
    "DiT, flow matching": ("digits/dit-flow", *DIT),
    "SRA": ("digits/sra", *NARROW, "backbone.depth=4", "loss.align.until=4"),
    "LayerSync": ("digits/layersync", *NARROW, "backbone.depth=4", "train.micro_batch=2"),
    "DiT, mirrored images, two averages": ("digits/dit", *DIT, "dataset.flip=true", "ema.long.decay=0.99"),
    "DiT, two and a half epochs": ("digits/dit", *DIT, "train.batch=600", "train.micro_batch=300"),
}  # fmt: skip


def new(name: str) -> Session:
    """Build a run before its first step."""
    if "Adan" in name and find_spec("pytorch_optimizer") is None:
        pytest.skip("pytorch-optimizer is not installed")
    recipe, *overrides = RUNS[name]
    batch = () if any(given.startswith("train.batch=") for given in overrides) else ("train.batch=8",)
    return build_session(
        resolve(ROOT / "recipes" / f"{recipe}.toml", [*SMALL, *batch, *overrides]), torch.device("cpu")
    )


class Watcher:
    """Callbacks that keep the rows of the log, save after each step to `store` if set, and stop at step `until`."""

    def __init__(self, until: int, store: Store | None = None) -> None:
        self.until, self.store = until, store
        self.rows: list[dict[str, float]] = []

    def logged(self, session: Session, row: Mapping[str, float]) -> None:
        clocks = {"seconds", "images_per_second"}
        self.rows.append({name: value for name, value in row.items() if name not in clocks})

    def stepped(self, session: Session) -> None:
        if self.store is not None:
            self.store.save(session.step, checkpoint_files(session, {"log_cursor": len(self.rows)}))
        if session.step == self.until:
            raise StopIteration


def advance(session: Session, until: int = STEPS, store: Store | None = None) -> list[dict[str, float]]:
    """Train until `until` steps are taken. Returns the rows of the log."""
    watcher = Watcher(until, store)
    with suppress(StopIteration):
        train(session, watcher)
    assert session.step == until
    return watcher.rows


def outcome(session: Session, rows: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """Return the final state of a run: every tensor, and every number of the log."""
    tensors = {name: tensor.clone() for name, tensor in state_of(session).items()}
    return tensors | {f"row {i}: {name}": value for i, row in enumerate(rows) for name, value in row.items()}


def differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    return sorted(one.keys() ^ two.keys()) + [name for name in one if name in two and not alike(one[name], two[name])]


def alike(one: Any, two: Any) -> bool:
    return torch.equal(one, two) if isinstance(one, Tensor) else bool(one == two)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder for the checkpoints of the killed runs."""
    return tmp_path_factory.mktemp("killed")


@cache
def undisturbed(name: str) -> dict[str, Any]:
    """Return the outcome of a run without saves or stops."""
    session = new(name)
    return outcome(session, advance(session))


@cache
def killed(name: str, folder: Path) -> tuple[Store, list[dict[str, float]]]:
    """Return the checkpoints of all steps but the last of a run that is then killed, and the rows it logged."""
    store = Store(folder / name, keep=STEPS)
    return store, advance(new(name), STEPS - 1, store)


def resumed(name: str, step: int, folder: Path) -> tuple[Session, list[dict[str, float]]]:
    """Return a new session that continues after `step`, and the rows of the log up to the cursor of its checkpoint."""
    store, rows = killed(name, folder)
    session = new(name)
    state = restore(session, store.open(step))
    return session, rows[: state["log_cursor"]]


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_in_the_same_bits_and_rows_after_every_step(
    name: str, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    found = {}
    for step in range(1, STEPS):
        session, rows = resumed(name, step, folder)
        found[step] = differing(outcome(session, rows + advance(session)), undisturbed(name))
    record_property("resume points", len(found))
    record_property("exact resume points", sum(names == [] for names in found.values()))
    assert {step: names for step, names in found.items() if names} == {}


Drop = Callable[[Session, Session], object]


def copied(part: Callable[[Session], Any]) -> Drop:
    """Leave a module as it was built."""

    def drop(session: Session, fresh: Session) -> None:
        part(session).load_state_dict(part(fresh).state_dict())

    return drop


def buffer(name: str) -> Drop:
    """Leave a buffer of the discrimination term as it was built."""
    return lambda session, fresh: term(session).get_buffer(name).copy_(term(fresh).get_buffer(name))


def term(session: Session) -> Any:
    return session.student.terms["discrimination"]


def moment(name: str) -> Drop:
    """Leave one of the optimizer's items at zero."""
    return lambda session, fresh: [entries[name].zero_() for entries in session.optimizer.state.values()]


def put(attribute: str) -> Drop:
    """Leave a plain attribute as it was built."""
    return lambda session, fresh: setattr(session, attribute, getattr(fresh, attribute))


ITEMS: dict[str, tuple[str, Drop]] = {
    "weights": ("SD-DiT", copied(lambda s: s.student.backbone)),
    "head of a term": ("SD-DiT", copied(lambda s: term(s).head)),
    "centre of class tokens": ("SD-DiT", buffer("center_cls")),
    "centre of patch tokens": ("SD-DiT", buffer("center_patch")),
    "teacher": ("SD-DiT", copied(lambda s: s.teacher.backbone)),
    "teacher's head": ("SD-DiT", copied(lambda s: s.teacher.modules["discrimination"]["head"])),
    "EMA": ("SD-DiT", copied(lambda s: s.emas["main"].module)),
    "second EMA": ("DiT, mirrored images, two averages", copied(lambda s: s.emas["long"].module)),
    "optimizer": ("MDT", lambda session, fresh: session.optimizer.state.clear()),
    "first moment": ("MDT", moment("exp_avg")),
    "second moment": ("MDT", moment("exp_avg_sq")),
    "steps counted per weight": ("MDT", moment("step")),
    "difference of gradients": ("MDTv2, Adan", moment("exp_avg_diff")),
    "gradient before": ("MDTv2, Adan", moment("previous_grad")),
    "steps counted per group": (
        "MDTv2, Adan", lambda session, fresh: [group.pop("step") for group in session.optimizer.param_groups],
    ),
    "step, and with it schedules and position in the data": ("MaskDiT", put("step")),
    "sums of the log": ("MaskDiT", put("sums")),
}  # fmt: skip


@pytest.mark.parametrize("item", ITEMS)
def test_each_item_of_the_state_is_needed(item: str, folder: Path) -> None:
    name, drop = ITEMS[item]
    session, rows = resumed(name, 3, folder)
    with torch.no_grad():
        drop(session, new(name))
    ended = outcome(session, rows + advance(session))
    assert differing(ended, undisturbed(name)) != []


@pytest.mark.parametrize("cursor", [0, 2])
def test_the_cursor_of_the_log_is_needed(cursor: int, folder: Path) -> None:
    """The log has one row after step 3: with another cursor a row is lost or doubled."""
    session, rows = resumed("MDT", 3, folder)
    assert len(rows) == 1
    assert differing(outcome(session, killed("MDT", folder)[1][:cursor] + advance(session)), undisturbed("MDT")) != []


def test_another_seed_ends_elsewhere() -> None:
    """Negative control of every comparison here: not all runs are equal."""
    recipe, *overrides = RUNS["MDT"]
    other = resolve(ROOT / "recipes" / f"{recipe}.toml", [*SMALL, "train.batch=8", *overrides, "seed=1"])
    session = build_session(other, torch.device("cpu"))
    found = differing(outcome(session, advance(session)), undisturbed("MDT"))
    assert any(name.startswith("student.") for name in found) and any(name.startswith("row ") for name in found)
