"""Read trained weights, and start networks from them."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from torch import Tensor, nn

from sddit.errors import Problem, SdditError, error
from sddit.recipes.settings import StartSettings
from sddit.recipes.start_weights import LocatedWeights, find_start
from sddit.storage.tensors import require_finite, unpack
from sddit.training.ema import with_prefix

MAX_NAMES = 5  # in one message


def read_weights(weights: LocatedWeights) -> dict[str, Tensor]:
    """Return the tensors of one network. Raises SD-C401 if the file has changed, SD-C450 for a non-finite number."""
    try:
        data = weights.file.read_bytes()
    except OSError as fault:
        raise error(
            "SD-C401",
            "the weights cannot be read",
            where=str(weights.file),
            got=fault.strerror or str(fault),
            fix="fix the file permissions, or restore it from a backup",
        ) from fault
    if (got := sha256(data).hexdigest()) != weights.sha256:
        raise error(
            "SD-C401",
            "the file of the weights is broken: checksum differs",
            where=str(weights.file),
            got=got,
            expect=weights.sha256,
            fix="restore it from a backup, or use another step",
        )
    tensors = with_prefix(weights.prefix, unpack(data))
    require_finite(tensors, weights.label)
    return tensors


def load_start_weights(start: StartSettings, backbone: nn.Module) -> list[str]:
    """Load the weights of `[start]` into a new backbone. Returns a note for each kind of misfit; empty if all fit.

    Raises:
        SdditError: SD-C452 with the names that do not fit, unless `partial`; SD-C451 if the weights have changed.
    """
    stored, initial = read_weights(find_start(start)), backbone.state_dict()
    unlike = misfits(stored, initial)
    if unlike and not start.partial:
        raise SdditError(*(_problem(what, names, start.run) for what, names in unlike.items()))
    fits = {
        name: stored[name].to(own.dtype)
        for name, own in initial.items()
        if name in stored and stored[name].shape == own.shape
    }
    backbone.load_state_dict({**initial, **fits})
    return [f"of the weights in {start.run}, {what}: {_first_names(names)}" for what, names in unlike.items()]


def misfits(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return what prevents weights from loading into a network: {kind of misfit: names}; empty if they fit."""
    kinds = {
        "missing, so initialized": [name for name in wanted if name not in stored],
        "without a counterpart here": sorted(name for name in stored if name not in wanted),
        "of another shape, so initialized": [
            f"{name} {list(stored[name].shape)}, not {list(own.shape)}"
            for name, own in wanted.items()
            if name in stored and stored[name].shape != own.shape
        ],
    }
    return {kind: names for kind, names in kinds.items() if names}


def _problem(what: str, names: list[str], run: str) -> Problem:
    return Problem(
        "SD-C452",
        f"the weights to start from do not fit: {what.partition(',')[0]}",
        where=run,
        got=_first_names(names),
        expect="the same backbone, image and classes",
        fix="correct the recipe, or set start.partial = true",
    )


def _first_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
