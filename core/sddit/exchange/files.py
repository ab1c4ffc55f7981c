"""Files of weights from elsewhere: which tensors they hold, and where in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from sddit.errors import error, one_of
from sddit.exchange.pickles import load_pickle
from sddit.storage.atomic import open_file
from sddit.storage.tensors import PICKLES

SETS = ("ema", "model")  # the names under which published files hold their weights, the one to sample with first
STEPS = ("step", "steps", "train_steps")
WRAPPERS = ("module.", "_orig_mod.")  # what DDP and torch.compile write before every name


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One set of weights of a file, under its own names."""

    path: Path
    sha256: str  # of the whole file
    chosen: str  # which set of the file; empty: it holds only one
    step: int  # at which it was saved, if it says so, else 0
    state: dict[str, Tensor]


def read_weight_file(path: Path, *, weights: str = "", trust_pickle: bool = False) -> WeightFile:
    """Read a safetensors file or, if it is trusted, a pickle of torch.save.

    Args:
        path: the file.
        weights: which set of a nested file, such as `ema` or `model`; empty: the average if there is one.
        trust_pickle: read a pickle too.

    Raises:
        SdditError: SD-C440 for a pickle that is not trusted or does more than hold weights, SD-C404 for a broken file,
            SD-C444 for none, SD-C446 for a set of weights that it does not hold.
    """
    try:
        with os.fdopen(open_file(path), "rb") as file:
            pickled = file.read(4).startswith(tuple(mark[:4] for mark in PICKLES)) or path.suffix in (".pt", ".pth")
            file.seek(0)
            digest = file_digest(file, "sha256").hexdigest()
    except OSError as fault:
        raise error(
            "SD-C444", "nothing to load", where=str(path), got=fault.strerror or "", expect="a weight file"
        ) from fault
    if pickled and not trust_pickle:
        raise error(
            "SD-C440",
            "this is a pickle, which can run code when read",
            where=str(path),
            expect="safetensors",
            fix="where you trust its author: sddit-run import FILE --layout NAME --trust-pickle",
        )
    held: Any = load_pickle(path) if pickled else _load_safetensors(path)
    chosen, state = _chosen(held, weights, path)
    return WeightFile(path, digest, chosen, _step(held), _unwrapped(state))


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as fault:
        raise error(
            "SD-C404",
            "not a safetensors file, or not a whole one",
            where=str(path),
            got=str(fault)[:160],
            fix="fetch or convert it again",
        ) from fault


def _chosen(held: Any, weights: str, path: Path) -> tuple[str, dict[str, Tensor]]:
    """The wanted set of weights and its name: all of a flat file, one of the sets of a nested one."""
    if _is_state(held):
        if weights:
            what = "this file holds one set of weights, without a name"
            raise error("SD-C446", what, where=str(path), got=f"--weights {weights}", fix="leave --weights out")
        return "", dict(held)
    sets = [name for name, value in held.items() if _is_state(value)] if isinstance(held, Mapping) else []
    wanted = weights or next((name for name in SETS if name in sets), "")
    if wanted not in sets:
        raise error(
            "SD-C446",
            "this file does not hold such weights",
            where=str(path),
            got=wanted or "(none chosen)",
            expect=one_of(wanted, sets)
            if sets
            else "tensors by name, or sets of them under names such as ema and model",
        )
    return wanted, dict(held[wanted])


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _step(held: Any) -> int:
    """The step that a nested file names."""
    steps = [held[key] for key in STEPS if isinstance(held.get(key), int) and held[key] >= 0]
    return steps[0] if steps else 0


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same without what wrappers write before every name."""
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)
