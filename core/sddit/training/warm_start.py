"""Read trained weights, and start networks from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256

from torch import Tensor, nn

from sddit.errors import Problem, error, raise_all
from sddit.recipes.start_weights import LocatedWeights
from sddit.storage.tensors import require_finite, unpack
from sddit.training.ema import with_prefix

MAX_NAMES = 5  # in one message


def read_weights(weights: LocatedWeights) -> dict[str, Tensor]:
    """Return the tensors of one network. Raises SD-C401 if the file has changed, SD-C450 for a non-finite number."""
    where = str(weights.file)
    try:
        data = weights.file.read_bytes()
    except OSError as fault:
        got, fix = fault.strerror or str(fault), "fix the file permissions, or restore it from a backup"
        raise error("SD-C401", "the weights cannot be read", where=where, got=got, fix=fix) from fault
    if (got := sha256(data).hexdigest()) != weights.sha256:
        what = "the file of the weights is broken: checksum differs"
        fix = "restore it from a backup, or use another step"
        raise error("SD-C401", what, where=where, got=got, expect=weights.sha256, fix=fix)
    tensors = with_prefix(weights.prefix, unpack(data))
    require_finite(tensors, weights.label)
    return tensors


def load_start_weights(start: LocatedWeights, backbone: nn.Module, *, partial: bool) -> list[str]:
    """Load the weights to start from into a new backbone. Returns a note for each kind of misfit; empty if all fit.

    Raises SD-C452 with the names that do not fit, unless `partial`.
    """
    stored, initial, where = read_weights(start), backbone.state_dict(), str(start.folder)
    unlike = misfits(stored, initial)
    if not partial:
        fix = "correct the recipe, or set start.partial = true"
        raise_all(misfit_problems(unlike, "the weights to start from do not fit", where, fix))
    fits = {
        name: stored[name].to(own.dtype)
        for name, own in initial.items()
        if name in stored and stored[name].shape == own.shape
    }
    backbone.load_state_dict({**initial, **fits})
    return [f"of the weights in {where}, {what}: {shortened(names)}" for what, names in unlike.items()]


def load_snapshot(snapshot: LocatedWeights, backbone: nn.Module) -> None:
    """Load the weights of `[snapshot]`. Raises SD-C452 with the names that do not fit."""
    stored, initial = read_weights(snapshot), backbone.state_dict()
    what, fix = "the weights of the snapshot do not fit", "use the snapshot of a run with the same network"
    raise_all(misfit_problems(misfits(stored, initial), what, str(snapshot.folder), fix))
    backbone.load_state_dict({name: stored[name].to(own.dtype) for name, own in initial.items()})


def misfit_problems(unlike: Mapping[str, list[str]], what: str, where: str, fix: str) -> Iterator[Problem]:
    """Yield a problem for each kind of misfit."""
    for kind, names in unlike.items():
        yield Problem(
            "SD-C452",
            f"{what}: {kind.partition(',')[0]}",
            where=where,
            got=shortened(names),
            expect="the same backbone, image and classes",
            fix=fix,
        )


def shortened(names: list[str]) -> str:
    """Return a few names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


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
