"""Read the tensors of a published weight file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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

SETS = ("ema", "ema_model", "model_ema", "ema_state_dict", "model", "state_dict", "model_state_dict", "module")
"""Names of sets of weights in published files; the preferred one first."""
STEPS = ("step", "steps", "train_steps", "global_step")
MAX_NESTING = 3  # tables around a set of weights, as in {"model": {"state_dict": {...}}}
MAX_NAMES = 6  # of what a file also holds, in one message


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One set of weights of a file, under the names of the file."""

    path: Path
    sha256: str  # of the entire file
    set_name: str  # empty: the file has only one set
    step: int  # training step stored in the file, else 0
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()  # what was left in the file


def read_weight_file(path: Path, *, weights: str = "", trust_pickle: bool = False) -> WeightFile:
    """Read a safetensors file or, if it is trusted, a pickle of torch.save.

    Args:
        path: the file.
        weights: which set of a nested file, such as `ema` or `model`, or the prefix of its names in a flat one; empty:
            `ema` if there is one.
        trust_pickle: allow a pickle.

    Raises:
        SdditError: SD-C440 for a pickle that is not trusted or contains code, SD-C404 for a damaged file, SD-C444 for a
            missing file, SD-C446 for a missing set of weights, SD-C460 for a file without tensors, SD-F713 for a file
            of an incomplete export.
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
    set_name, state, notes = _choose_weights(content, weights, path)
    steps = [content[key] for key in STEPS if isinstance(content.get(key), int) and content[key] >= 0]
    return WeightFile(path, digest, set_name, steps[0] if steps else 0, state, notes)


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


def _choose_weights(content: Any, weights: str, path: Path) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Return name and tensors of the requested set, and what else the file holds."""
    if _is_state(content):
        return _choose_prefix(content, weights, path)
    sets = dict(_sets(content)) if isinstance(content, Mapping) else {}
    preferred = (name for name in SETS if name in sets)
    nested = (name for known in SETS for name in sets if known in name.split("."))
    wanted = weights or next(preferred, "") or next(nested, "")
    if not sets and _holds_no_tensor(content):
        raise error("SD-C460", "the file holds no tensors", where=str(path), got=_summary(content))
    if wanted not in sets and (holder := _set_with_prefix(sets, wanted)):
        name, state, notes = _choose_prefix(sets[holder], wanted.removeprefix(f"{holder}."), path)
        return f"{holder}.{name}", state, (*_left(content, sets, holder), *notes)
    if wanted not in sets:
        raise error(
            "SD-C446",
            "the file has no such set of weights",
            where=str(path),
            got=wanted or "(none selected)",
            expect=one_of(wanted, sets) if sets else "tensors by name, or sets of tensors such as ema and model",
            fix=f"--weights {next(iter(sets))}, for example" if sets else "",
        )
    return wanted, dict(sets[wanted]), _left(content, sets, wanted)


def _left(content: Mapping[str, Any], sets: Mapping[str, Any], chosen: str) -> tuple[str, ...]:
    """Return a note on what a nested file holds next to the chosen set."""
    top = chosen.partition(".")[0]
    others = [str(key) for key in content if key != top]
    others += [name for name in sets if name != chosen and name.partition(".")[0] == top]
    return (f"dropped: {_some(others)}",) if others else ()


def _set_with_prefix(sets: Mapping[str, Mapping[str, Tensor]], wanted: str) -> str:
    """Return the set whose names have the prefix `wanted`, or `SET.prefix`; empty if there is not exactly one."""
    holders = [
        name
        for name, state in sets.items()
        if any(key.startswith(f"{wanted.removeprefix(f'{name}.')}.") for key in state)
    ]
    return holders[0] if wanted and len(holders) == 1 else ""


def _choose_prefix(
    state: Mapping[str, Tensor], weights: str, path: Path
) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a flat file, or those whose names begin with the requested prefix, without it."""
    if not weights:
        return "", dict(state), ()
    prefix = f"{weights.removesuffix('.')}."
    chosen = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not chosen and (groups := prefixes_of_sets(state)):
        what, expect = "the file has no such set of weights", one_of(weights, groups)
        raise error("SD-C446", what, where=str(path), got=f"--weights {weights}", expect=expect)
    if not chosen:
        what = "the file has no set of weights of this name, and no tensor whose name begins with it"
        fix = "remove --weights: the sets of the file are then found, or listed"
        raise error("SD-C446", what, where=str(path), got=f"--weights {weights}", fix=fix)
    others = sorted({name.partition(".")[0] for name in state if not name.startswith(prefix)})
    return prefix.removesuffix("."), chosen, (f"dropped: {_some(others)}",) if others else ()


def prefixes_of_sets(state: Mapping[str, Tensor]) -> list[str]:
    """Return the known names of sets that begin names of a flat file."""
    first = {name.partition(".")[0] for name in state if "." in name}
    return [name for name in SETS if name in first]


def _sets(content: Mapping[Any, Any], within: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield (dotted name, tensors) of every set of weights in nested tables."""
    for key, value in content.items():
        name = f"{within}{key}"
        if isinstance(key, str) and _is_state(value):
            yield name, value
        elif isinstance(key, str) and isinstance(value, Mapping) and depth + 1 < MAX_NESTING:
            yield from _sets(value, f"{name}.", depth + 1)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _holds_no_tensor(content: Any) -> bool:
    if isinstance(content, Mapping):
        return all(_holds_no_tensor(value) for value in content.values())
    return not isinstance(content, Tensor | list | tuple)


def _summary(content: Any) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    return _some([f"{key} (empty)" if value in ({}, None) else str(key) for key, value in content.items()]) or "nothing"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
