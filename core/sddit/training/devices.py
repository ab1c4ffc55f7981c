"""Check the devices of a machine without importing torch."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # on Linux: NVIDIA, WSL, AMD


def unavailable_reason(device: str) -> str:
    """Return why `--device` is certainly not usable; empty if it may be: only torch knows for sure."""
    if device != "cuda":
        return ""
    torch = installed("torch")
    if torch.endswith("+cpu"):
        return f"torch {torch} is built without CUDA"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every device"
    if sys.platform == "darwin":
        return "this system has no CUDA"
    if sys.platform == "linux" and not any(Path(driver).exists() for driver in DRIVERS):
        return "no driver of a GPU is loaded"
    return ""


def installed(distribution: str) -> str:
    """Return the version of a distribution, e.g. 2.13.0+cpu; empty if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def min_torch_version() -> str:
    """Return the minimum version of torch that sddit requires; empty if sddit is not installed as a distribution."""
    try:
        requirements = requires("sddit") or []
    except PackageNotFoundError:
        return ""
    return next((match[1] for text in requirements if (match := re.fullmatch(r"torch\s*>=\s*([\d.]+)", text))), "")


def version_numbers(version: str) -> tuple[int, ...]:
    """Return 2.13.0+cpu as (2, 13, 0), to compare."""
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))
