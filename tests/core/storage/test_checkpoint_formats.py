"""Checkpoints of every format ever written are read, and continue to the bits they would have had."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sddit.errors import SdditError
from sddit.recipes.resolve import resolve
from sddit.storage.checkpoints import Store
from sddit.storage.manifest import FORMAT, MANIFEST, seal_manifest
from sddit.testing.sessions import advance, state_of
from sddit.testing.toys.plugin import TOY_PAIR_RECIPE, toy_host
from sddit.training.build import build_session
from sddit.training.session import Session
from sddit.training.state import checkpoint_files, restore

STORED = Path(__file__).parents[2] / "fixtures" / "checkpoints"
TAKEN = 3  # the step of every stored checkpoint
WEIGHTS = {1: "5904d2e65771f84f"}
"""What the tensors of a stored checkpoint are, by its format."""


@pytest.fixture
def new_session(tmp_path: Path) -> Callable[[], Session]:
    """The run that the stored checkpoints are of, before its first step."""
    path, host = tmp_path / "toy.toml", toy_host()
    toy = TOY_PAIR_RECIPE.replace("steps = 4\nbatch", "steps = 6\nlog_every = 2\nbatch")
    path.write_text(toy + "\n[ema.main]\ndecay = 0.9\nramp = true\n")
    return lambda: build_session(resolve(path, ["backbone.hidden=8"], host=host), torch.device("cpu"))


def stored(tmp_path: Path, format: int) -> Store:
    """A store that holds a copy of the checkpoint of that format, and nothing else."""
    store = Store(tmp_path / "checkpoints", keep=2)
    shutil.copytree(STORED / f"format-{format}", store.path_of(TAKEN))
    return store


def digest(session: Session) -> str:
    """A hash of everything that lasts."""
    total = hashlib.sha256()
    for name, tensor in sorted(state_of(session).items()):
        total.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def test_one_of_every_format_but_this_one_is_kept() -> None:
    """A change of the form needs a step to it, and a checkpoint of the form that was."""
    assert set(WEIGHTS) == set(range(1, FORMAT))
    assert {path.name for path in STORED.iterdir()} == {f"format-{number}" for number in WEIGHTS}


@pytest.mark.parametrize("format", WEIGHTS)
def test_a_stored_checkpoint_is_read(format: int, new_session: Callable[[], Session], tmp_path: Path) -> None:
    store, session = stored(tmp_path, format), new_session()
    found = store.latest()
    assert found is not None and (found.step, found.format) == (TAKEN, format)
    state = restore(session, found)
    assert (session.step, session.skipped, state["log_cursor"]) == (TAKEN, [], 0)
    assert digest(session) == WEIGHTS[format]
    assert digest(new_session()) != WEIGHTS[format], "the control"
    assert {"grad_norm", "loss/agree"} <= session.sums.keys()


def downgraded(state: dict[str, Any], format: int) -> dict[str, Any]:
    """A state.json of this version as an earlier one would have written it."""
    if format == 1:
        state = {**state, "optimized": sorted(int(index) for index in state["optimized"])}
        del state["skipped"]
    return state


@pytest.mark.parametrize("format", WEIGHTS)
def test_a_run_continues_from_an_earlier_format_to_the_same_bits(
    format: int, new_session: Callable[[], Session], tmp_path: Path
) -> None:
    half, whole, resumed = new_session(), new_session(), new_session()
    advance(half, TAKEN)
    store = Store(tmp_path / "checkpoints", keep=2)
    files = checkpoint_files(half, {"log_cursor": 0})
    assert isinstance(files["state.json"], bytes)
    old = downgraded(json.loads(files["state.json"]), format)
    place = store.save(TAKEN, {**files, "state.json": json.dumps(old).encode()})
    manifest = json.loads((place / MANIFEST).read_bytes())
    del manifest["sha256"]
    (place / MANIFEST).write_bytes(seal_manifest({**manifest, "format": format}))
    found = store.open(TAKEN)
    restore(resumed, found)
    advance(resumed, 3)
    advance(whole, 6)
    assert digest(resumed) == digest(whole)
    assert digest(half) != digest(whole), "the control"

    (place / MANIFEST).write_bytes(seal_manifest(manifest))  # what calls itself this version's must be
    with pytest.raises(SdditError, match="SD-C410"):
        restore(new_session(), store.open(TAKEN))


@pytest.mark.parametrize("format", WEIGHTS)
def test_reading_rewrites_nothing(format: int, new_session: Callable[[], Session], tmp_path: Path) -> None:
    store = stored(tmp_path, format)
    before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    found = store.latest()
    assert found is not None
    restore(new_session(), found)
    assert {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()} == before
