"""Find trained weights in a run folder or an exported folder. Torch-free."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sddit.errors import error, one_of
from sddit.recipes.settings import OtherRunSettings
from sddit.storage.checkpoints import Read, Store
from sddit.storage.manifest import Checkpoint, broken_error, read_manifest, seal_manifest
from sddit.storage.output_folder import verify_output
from sddit.storage.run_folder import RECIPE, read_json, recorded_ids, refuse_changed

S = TypeVar("S", bound=OtherRunSettings)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PROVENANCE = "provenance.json"  # in the run folder of imported weights
EXPORT_FORMAT = 1


@dataclass(frozen=True, slots=True)
class LocatedWeights:
    """The weights of one network on disk, and the hash that their file must have."""

    folder: Path
    label: str  # `student`, or that of an [ema]
    step: int
    file: Path
    prefix: str  # of the names of its tensors in that file
    sha256: str


def find_weights(folder: Path, label: str = "", step: int | None = None) -> LocatedWeights:
    """Return the weights `label` of a folder; empty: those that it samples with.

    Raises SD-C445 for a folder of another kind, SD-C446 for a label it does not have, SD-C403 for a step, SD-C447 for a
    run without a checkpoint.
    """
    if (folder / RECIPE).is_file():
        return _in_run(folder, label, step)
    verify_export(folder)
    if is_export(folder):
        return _in_export(folder, label, step)
    expect = f"a folder that holds {RECIPE}, or {CONFIG} of sddit-run export"
    raise error("SD-C445", "neither a run folder nor an exported one", where=str(folder), expect=expect)


def complete_weights(named: S, table: str, *, stated: bool) -> S:
    """Return `[start]` or `[snapshot]` with label, step and hash filled in. Raises as `named_weights` does.

    The hash that a resolved recipe has `stated` is not checked: a run that has started no longer needs these weights.
    """
    if stated and named.sha256:
        return named
    weights = named_weights(named, table)
    return named.model_copy(update={"weights": weights.label, "step": weights.step, "sha256": weights.sha256})


def named_weights(named: OtherRunSettings, table: str) -> LocatedWeights:
    """Return the weights that `[start]` or `[snapshot]` names.

    Raises as `find_weights` does, and SD-C451 if their hash is not `sha256`.
    """
    weights = find_weights(Path(named.run), named.weights, named.step)
    if named.sha256 not in ("", weights.sha256):
        raise error(
            "SD-C451",
            f"the weights of [{table}] differ from those that the recipe names",
            where=f"{table}.sha256",
            got=weights.sha256,
            expect=named.sha256,
            fix=f"set {table}.step, or remove {table}.sha256",
        )
    return weights


def verify_export(folder: Path) -> None:
    """Raise SD-F713 unless the files of an exported folder are as they were written.

    A config that was edited has its own checks, and the weights are compared with it when they are read.
    """
    verify_output(folder, unchecked=(CONFIG, WEIGHTS))


def is_export(folder: Path) -> bool:
    """Return whether a folder holds a config as `sddit-run export` writes it."""
    return (folder / CONFIG).is_file() and "recipe" in _json(folder / CONFIG)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config of an exported folder. Raises SD-C430 for another format."""
    config, where = _json(folder / CONFIG), str(folder / CONFIG)
    if config.get("format") != EXPORT_FORMAT:
        raise error(
            "SD-C430",
            "the exported folder is of another format",
            where=str(folder),
            got=f"format {config.get('format')}, this version reads {EXPORT_FORMAT}",
            fix="use the version that wrote it, or export again with this one",
        )
    sealed = {key: value for key, value in config.items() if key != "sha256"}
    if "sha256" in config and seal_manifest(sealed) != (folder / CONFIG).read_bytes():
        fix = 'restore it from a backup; if you changed it yourself, remove its key "sha256"'
        raise error("SD-F704", "the config is not what was exported", where=where, fix=fix)
    recipe, weights = config.get("recipe"), config.get("weights")
    stated = {key: type(value) for key, value in weights.items()} if isinstance(weights, dict) else {}
    named = recipe.get("plugins", []) if isinstance(recipe, dict) else None
    if not isinstance(named, list) or stated != {"label": str, "step": int, "sha256": str}:
        what = "the config is not as sddit-run export writes it"
        expect = "a table `recipe`, and a table `weights` with label, step and sha256"
        raise error("SD-F704", what, where=where, expect=expect, fix="restore it from a backup")
    return config


def find_checkpoint(folder: Path, step: int | None, *, read: Read) -> Checkpoint:
    """Return the checkpoint of a step of a run, or the newest intact one.

    `read` is `verify`, or `read_manifest` where the files are verified when they are read. Warns of newer broken
    checkpoints, which are left where they are. Raises SD-C447 for a run without a checkpoint, or as `Store.latest` and
    `Store.open` do.
    """
    store = Store(folder / "checkpoints", keep=1, run_ids=recorded_ids(folder))
    found = store.latest(move_broken=False, read=read) if step is None else store.open(step, read=read)
    if found is None:
        fix = "run its recipe until the first save"
        raise error("SD-C447", "this run has no checkpoint yet", where=str(folder), fix=fix)
    for notice in store.notices:
        warnings.warn(notice, stacklevel=4)
    return found


def _in_run(folder: Path, label: str, step: int | None) -> LocatedWeights:
    refuse_changed(folder / RECIPE)
    recipe = _json(folder / RECIPE)
    label = label or recipe.get("evaluate", {}).get("weights") or "student"
    refuse_unknown_label(label, ["student", *recipe.get("ema", {})], folder)
    checkpoint = find_checkpoint(folder, step, read=read_manifest)
    name, prefix = ("model", "backbone.") if label == "student" else ("ema", f"{label}.")
    file = f"{name}.safetensors"
    if file not in checkpoint.files:
        raise broken_error(checkpoint.folder, f"{file}: missing")
    return LocatedWeights(folder, label, checkpoint.step, checkpoint.folder / file, prefix, checkpoint.files[file][1])


def _in_export(folder: Path, label: str, step: int | None) -> LocatedWeights:
    weights = read_config(folder)["weights"]
    refuse_unknown_label(label or weights["label"], [weights["label"]], folder)
    if step not in (None, weights["step"]):
        raise error("SD-C403", f"step {step} not found", where=str(folder), expect=str(weights["step"]))
    return LocatedWeights(folder, weights["label"], weights["step"], folder / WEIGHTS, "", weights["sha256"])


def refuse_unknown_label(label: str, known: Collection[str], folder: Path) -> None:
    """Raise SdditError (SD-C446) for weights that a folder does not have."""
    if label not in known:
        raise error("SD-C446", f"no weights {label!r} here", where=str(folder), got=label, expect=one_of(label, known))


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one if the file holds something else."""
    held: Any = read_json(path, object, fix="restore it from a backup")
    return held if isinstance(held, dict) else {}
