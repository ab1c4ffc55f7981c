"""Trained weights as tensors, and networks that begin from them."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from torch import Tensor, nn

from sddit.errors import Problem, SdditError, error
from sddit.recipes.settings import StartSettings
from sddit.recipes.start_weights import Found, found
from sddit.storage.tensors import require_finite, unpack
from sddit.training.ema import under

MOST = 5  # names in one message


def read_weights(weights: Found) -> dict[str, Tensor]:
    """The tensors of one network. Raises SD-C401 where the file has changed, SD-C450 where a number is not finite."""
    try:
        data = weights.file.read_bytes()
    except OSError as fault:
        raise error(
            "SD-C401",
            "the weights cannot be read",
            where=str(weights.file),
            got=fault.strerror or str(fault),
            fix="mend its permissions, or put a copy back",
        ) from fault
    if (got := sha256(data).hexdigest()) != weights.sha256:
        raise error(
            "SD-C401",
            "the file of the weights is broken: checksum differs",
            where=str(weights.file),
            got=got,
            expect=weights.sha256,
            fix="put a copy back, or use another step",
        )
    tensors = under(weights.prefix, unpack(data))
    require_finite(tensors, weights.label)
    return tensors


def begin_from(start: StartSettings, backbone: nn.Module) -> list[str]:
    """Put the weights that `[start]` names into a fresh backbone. Returns what did not fit, in words; nothing: all did.

    Raises:
        SdditError: SD-C452 with the names that do not fit, unless `partial`; SD-C451 if the weights have changed.
    """
    weights = found(Path(start.run), start.weights, start.step)
    if start.sha256 not in ("", weights.sha256):
        raise error(
            "SD-C451",
            "the weights to begin from have changed",
            where=start.run,
            got=weights.sha256,
            expect=start.sha256,
        )
    given, fresh = read_weights(weights), backbone.state_dict()
    unlike = misfits(given, fresh)
    if unlike and not start.partial:
        raise SdditError(*(_problem(what, names, start.run) for what, names in unlike.items()))
    fits = {
        name: given[name].to(own.dtype) for name, own in fresh.items() if name in given and _alike(given[name], own)
    }
    backbone.load_state_dict({**fresh, **fits})
    return [f"of the weights in {start.run}, {what}: {_listed(names)}" for what, names in unlike.items()]


def misfits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What stops weights from loading into a network: kind of misfit -> names. Empty: they fit."""
    kinds = {
        "missing, so fresh here": [name for name in wanted if name not in given],
        "without a place here": sorted(name for name in given if name not in wanted),
        "of another shape, so fresh here": [
            f"{name} {list(given[name].shape)}, not {list(own.shape)}"
            for name, own in wanted.items()
            if name in given and not _alike(given[name], own)
        ],
    }
    return {kind: names for kind, names in kinds.items() if names}


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape


def _problem(what: str, names: list[str], run: str) -> Problem:
    return Problem(
        "SD-C452",
        f"the weights to begin from do not fit: {what.partition(',')[0]}",
        where=run,
        got=_listed(names),
        expect="the same backbone, image and classes",
        fix="mend the recipe, or start.partial = true",
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more
