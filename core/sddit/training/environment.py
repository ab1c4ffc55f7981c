"""Describe and configure the environment of a run: versions, plugins, device. Never user names, paths or variables."""

from __future__ import annotations

import platform
import sys
from typing import Any

import torch

from sddit.distributed import processes
from sddit.errors import error
from sddit.recipes.recipe import Recipe
from sddit.training.devices import installed, min_torch_version, version_numbers

PACKAGES = ("sddit", "torch", "numpy", "pydantic", "safetensors", "pillow", "xformers")


def describe_environment(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Return versions, device and numerical settings, for `environment.json` and the report."""
    return {
        "python": sys.version.split()[0],
        "packages": packages(),
        "plugins": dict(recipe.plugin_digests),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": recipe.train.precision,
        "attention": recipe.attention.component.qualified,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def packages() -> dict[str, str]:
    """Return the versions of the packages that the results of a run may depend on."""
    return {name: found for name in PACKAGES if (found := installed(name))}


def device_name(device: torch.device) -> str:
    """Return `cpu`, or the name of the accelerator."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def choose_device(name: str, *, where: str = "--device") -> torch.device:
    """Return the device of `--device`, or of another argument `where`.

    Raises SD-P230 if it is not usable, SD-P211 if torch is too old.
    """
    if (found := installed("torch")) and version_numbers(found) < version_numbers(oldest := min_torch_version()):
        what, expect, fix = f"torch {found} is too old", f"at least {oldest}", f"pip install 'torch>={oldest}'"
        raise error("SD-P211", what, where="this Python environment", got=found, expect=expect, fix=fix)
    if name == "cuda" and not torch.cuda.is_available():
        build = f"PyTorch {torch.__version__}, " + (
            f"built for CUDA {torch.version.cuda}, finds no GPU" if torch.version.cuda else "built without CUDA"
        )
        fix = "--device cpu" if where == "--device" else f'{where}="cpu"'
        fix += "" if torch.version.cuda else ", or install a CUDA build: see pytorch.org"
        raise error("SD-P230", "no CUDA device is usable here", where=where, got=build, expect="cpu", fix=fix)
    if name not in ("cpu", "cuda"):
        raise error("SD-R162", f"no device {name!r}", where=where, got=name, expect="one of cpu, cuda")
    if name == "cuda" and processes.world_size() > 1:
        if (own := processes.local_rank()) >= (count := torch.cuda.device_count()):
            what, expect = "no CUDA device has the local rank of this process", f"a number below {count}"
            fix = f"start at most {count} processes on this machine"
            raise error("SD-X808", what, where="LOCAL_RANK", got=str(own), expect=expect, fix=fix)
        torch.cuda.set_device(own)
        return torch.device(name, own)
    return torch.device(name)


def configure(recipe: Recipe, device: torch.device, threads: int | None = None) -> None:
    """Set the threads and determinism of this process, before anything is built.

    `threads` is the number stored in a checkpoint: on a CPU the bits depend on it, so a run keeps its first one.
    """
    if count := recipe.train.threads or threads:
        torch.set_num_threads(count)
    wanted = recipe.train.deterministic
    torch.use_deterministic_algorithms(device.type == "cpu" if wanted is None else wanted)
    # No code here reads memory before it writes it, and filling all of it costs several percent of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
