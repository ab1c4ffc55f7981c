"""What a run was made with: versions, plugins, device. No user name, no path of a home, no environment variable."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from sddit.distributed import processes
from sddit.errors import error
from sddit.recipes.recipe import Recipe
from sddit.training.devices import numbers_of, oldest_torch, torch_version

PACKAGES = ("sddit", "torch", "numpy", "pydantic", "safetensors", "pillow", "xformers")


def environment(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Versions and machine, for `environment.json` and the report."""
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
    """The versions of what the numbers of a run may depend on."""
    return {name: found for name in PACKAGES if (found := installed(name))}


def installed(distribution: str) -> str:
    """The version of an installed distribution, or nothing."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def device_name(device: torch.device) -> str:
    """`cpu`, or the accelerator's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def choose_device(name: str) -> torch.device:
    """The device of `--device`. Raises SD-P230 where it is not there, SD-P211 where torch is too old to be used at all."""
    if (found := torch_version()) and numbers_of(found) < numbers_of(oldest := oldest_torch()):
        raise error(
            "SD-P211",
            f"torch {found} is too old",
            where="this Python environment",
            got=found,
            expect=f"at least {oldest}",
            fix=f"pip install 'torch>={oldest}'",
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise error(
            "SD-P230", "no CUDA device is usable here", where="--device", got="cuda", expect="cpu", fix="--device cpu"
        )
    if name not in ("cpu", "cuda"):
        raise error("SD-R162", f"no device {name!r}", where="--device", got=name, expect="one of cpu, cuda")
    if name == "cuda" and processes.world_size() > 1:
        torch.cuda.set_device(processes.local_rank())
        return torch.device(name, processes.local_rank())
    return torch.device(name)


def configure(recipe: Recipe, device: torch.device, threads: int | None = None) -> None:
    """Threads and determinism of this process, before anything is built.

    `threads` is the count a checkpoint recorded: on a CPU the bits depend on it, so a run keeps the one it began with.
    """
    if count := recipe.train.threads or threads:
        torch.set_num_threads(count)
    wanted = recipe.train.deterministic
    torch.use_deterministic_algorithms(device.type == "cpu" if wanted is None else wanted)
