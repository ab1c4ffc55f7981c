"""What can be known of a machine's devices without importing torch."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""What a GPU's driver leaves on Linux: NVIDIA's, the one of Windows' Linux, AMD's."""


def surely_absent(device: str) -> str:
    """Why `--device` cannot be used here, or nothing where it may be: only torch knows for sure."""
    if device != "cuda":
        return ""
    torch = torch_version()
    if torch.endswith("+cpu"):
        return f"torch {torch} is built without CUDA"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every device"
    if sys.platform == "darwin":
        return "this system has no CUDA"
    if sys.platform == "linux" and not any(Path(driver).exists() for driver in DRIVERS):
        return "no driver of a GPU is loaded"
    return ""


def torch_version() -> str:
    """As its distribution states it: 2.13.0+cpu."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def oldest_torch() -> str:
    """The oldest torch that sddit's own distribution asks for: 2.10; an empty text where it is not installed as one."""
    try:
        asked = requires("sddit") or []
    except PackageNotFoundError:
        return ""
    return next((match[1] for text in asked if (match := re.fullmatch(r"torch\s*>=\s*([\d.]+)", text))), "")


def numbers_of(version: str) -> tuple[int, ...]:
    """2.13.0+cpu as (2, 13, 0), to compare."""
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))
