"""Read the tensors of a published weight file."""

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
from sddit.storage.output_folder import verify_file
from sddit.storage.tensors import PICKLES

SETS = ("ema", "model")  # names of sets of weights in published files; the preferred one first
STEPS = ("step", "steps", "train_steps")
WRAPPERS = ("module.", "_orig_mod.")  # name prefixes that DDP and torch.compile add


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One set of weights of a file, under the names of the file."""

    path: Path
    sha256: str  # of the entire file
    set_name: str  # empty: the file has only one set
    step: int  # training step stored in the file, else 0
    state: dict[str, Tensor]


def read_weight_file(path: Path, *, weights: str = "", trust_pickle: bool = False) -> WeightFile:
    """Read a safetensors file or, if it is trusted, a pickle of torch.save.

    Args:
        path: the file.
        weights: which set of a nested file, such as `ema` or `model`; empty: `ema` if there is one.
        trust_pickle: allow a pickle.

    Raises:
        SdditError: SD-C440 for a pickle that is not trusted or contains code, SD-C404 for a damaged file, SD-C444 for a
            missing file, SD-C446 for a missing set of weights, SD-F713 for a file of an incomplete export.
    """
    verify_file(path)
    try:
        with os.fdopen(open_file(path), "rb") as file:
            pickled = file.read(4).startswith(PICKLES) or path.suffix in (".pt", ".pth")
            file.seek(0)
            digest = file_digest(file, "sha256").hexdigest()
    except OSError as fault:
        got, expect = fault.strerror or "", "a readable file"
        raise error("SD-C444", "cannot open the weight file", where=str(path), got=got, expect=expect) from fault
    if pickled and not trust_pickle:
        what = "the file is a pickle, which can run code when it is read"
        raise error("SD-C440", what, where=str(path), expect="safetensors")
    content: Any = load_pickle(path) if pickled else _load_safetensors(path)
    set_name, state = _choose_weights(content, weights, path)
    steps = [content[key] for key in STEPS if isinstance(content.get(key), int) and content[key] >= 0]
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return WeightFile(path, digest, set_name, steps[0] if steps else 0, state)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as fault:
        raise error(
            "SD-C404",
            "not a safetensors file, or truncated",
            where=str(path),
            got=str(fault)[:160],
            fix="download or convert it again",
        ) from fault


def _choose_weights(content: Any, weights: str, path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return name and tensors of the requested set: everything in a flat file, one set of a nested file."""
    if _is_state(content):
        if weights:
            what = "the file holds a single set of weights, without a name"
            raise error("SD-C446", what, where=str(path), got=f"--weights {weights}", fix="remove --weights")
        return "", dict(content)
    sets = [name for name, value in content.items() if _is_state(value)] if isinstance(content, Mapping) else []
    wanted = weights or next((name for name in SETS if name in sets), "")
    if wanted not in sets:
        raise error(
            "SD-C446",
            "the file has no such set of weights",
            where=str(path),
            got=wanted or "(none selected)",
            expect=one_of(wanted, sets) if sets else "tensors by name, or sets of tensors such as ema and model",
        )
    return wanted, dict(content[wanted])


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )
