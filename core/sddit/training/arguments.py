"""Check the arguments of the functions for Python, so that a mistake ends in a message instead of a traceback."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from sddit.errors import SdditError, error, expand_user, one_of
from sddit.interfaces import Network, NoiseSchedule
from sddit.training.environment import choose_device

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
OVERRIDABLE = ("sampler", "guidance", "dataset.latent_scale")
"""Tables and keys of a recipe that may be changed when a trained network is sampled."""


def wrong_argument(what: str, name: str, value: Any, expect: str) -> SdditError:
    """Return the error SD-T925."""
    return error("SD-T925", what, where=name, got=f"{value!r:.80} ({type(value).__name__})", expect=expect)


def whole_argument(value: Any, name: str, low: int, high: int) -> int:
    """Return a whole number of Python, NumPy or PyTorch. Raises SD-T925 for another type, or outside of [low, high]."""
    expect = f"a whole number from {low} to {high:,}"
    try:
        if isinstance(value, bool) or getattr(value, "ndim", None):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise wrong_argument(f"{name} is not a whole number", name, value, expect) from None
    if not low <= number <= high:
        raise error("SD-T925", f"{name} is out of range", where=name, got=f"{name} = {number}", expect=expect)
    return number


def number_argument(value: Any, name: str) -> float:
    """Return a number of Python, NumPy or PyTorch. Raises SD-T925 for another type, and for NaN and infinity."""
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise wrong_argument(f"{name} is not a number", name, value, "a number") from None
    if not math.isfinite(number):
        raise error("SD-T925", f"{name} is not finite", where=name, got=str(number), expect="a finite number")
    return number


def flag_argument(value: Any, name: str) -> bool:
    """Return True or False. Raises SD-T925 for anything else."""
    if not isinstance(value, bool):
        raise wrong_argument(f"{name} is neither True nor False", name, value, "True or False")
    return value


def text_argument(value: Any, name: str) -> str:
    """Return a text. Raises SD-T925 for another type."""
    if not isinstance(value, str):
        raise wrong_argument(f"{name} is not a text", name, value, "a text in quotes")
    return value


def path_argument(value: Any, name: str) -> Path:
    """Return a path, in which `~` is the home folder.

    Raises SD-T925 for an empty text or another type, SD-F707 for an unknown home folder.
    """
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip() or "\0" in str(value):
        raise wrong_argument(f"{name} is not a path", name, value, "the path of a file or folder")
    path = expand_user(Path(value), name)
    try:
        path.exists()
    except OSError as failure:
        raise wrong_argument(f"{failure.strerror}", name, value, "the path of a file or folder") from None
    return path


def device_argument(value: Any) -> torch.device:
    """Return a device from its name such as `cpu` or `cuda:1`. Raises SD-R162 or SD-P230 as `--device` does."""
    name = str(value) if isinstance(value, (str, torch.device)) else ""
    if not name:
        raise wrong_argument("not a device", "device", value, "cpu, cuda, cuda:1 or a torch.device")
    kind, _, index = name.partition(":")
    if kind != "cuda" or not index:
        return choose_device("cpu" if name == "cpu:0" else name, where="device")
    choose_device(kind, where="device")
    count = torch.cuda.device_count()
    if not index.isdecimal() or int(index) >= count:
        raise error("SD-R162", f"no device {name!r}", where="device", got=name, expect=f"cuda:0 to cuda:{count - 1}")
    return torch.device(name)


def dtype_argument(value: Any) -> torch.dtype | None:
    """Return a dtype of weights from itself or its name; None remains None. Raises SD-T925 for others."""
    known = {**DTYPES, **{f"torch.{name}": dtype for name, dtype in DTYPES.items()}}
    if value is None or value in DTYPES.values():
        return value  # type: ignore[no-any-return]
    if isinstance(value, str) and value in known:
        return known[value]
    raise wrong_argument("not a dtype of weights", "dtype", value, one_of(str(value), DTYPES))


def schedule_argument(value: Any) -> NoiseSchedule:
    """Return a noise schedule. Raises SD-T925 for anything else."""
    if not hasattr(value, "sigma_range"):
        expect = 'model.require_schedule(), or sddit.build("noise_schedules", ...)'
        raise wrong_argument("not a noise schedule", "schedule", type(value).__name__, expect)
    schedule: NoiseSchedule = value
    return schedule


def images_argument(value: Any, name: str, image: Sequence[int] = ()) -> Tensor:
    """Return images [B, C, H, W] of floating-point numbers, each of the shape `image`. Raises SD-T925 for others."""
    sizes = ", ".join(map(str, image)) if image else "C, H, W"
    expect = f"a tensor of floating-point numbers [B, {sizes}]"
    fits = isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point() and value.numel() > 0
    if not fits or (image and tuple(value.shape[1:]) != tuple(image)):
        raise error("SD-T925", f"{name} holds no such images", where=name, got=_kind(value), expect=expect)
    images: Tensor = value
    return images


def noise_argument(value: Any, count: int, image: Sequence[int]) -> Tensor | None:
    """Return the unit noise of `count` images, or None. Raises SD-T925 for another shape, and for NaN and infinity."""
    if value is None:
        return None
    noise = images_argument(value, "noise", image)
    if len(noise) != count:
        expect = f"noise for {count} images: all classes times per_class"
        raise error(
            "SD-T925", "noise is for another number of images", where="noise", got=f"{len(noise)}", expect=expect
        )
    if not bool(torch.isfinite(noise).all()):
        raise error("SD-T925", "noise is not finite", where="noise", got="NaN or infinity", expect="finite numbers")
    return noise


def network_input(value: Any, name: str, image: Sequence[int], network: nn.Module) -> Tensor:
    """Return images of the type and on the device of a network's weights. Raises SD-T925 for others."""
    x = images_argument(value, name, image)
    weight = next(network.parameters(), x)  # a network may have none
    if x.dtype != weight.dtype or x.device.type != weight.device.type:
        expect = f"{weight.dtype} on {weight.device.type}, as the weights"
        got = f"{x.dtype} on {x.device.type}"
        raise error("SD-T925", f"{name} is unlike the weights", where=name, got=got, expect=expect)
    return x


def labels_argument(value: Any, count: int, num_classes: int | None = None) -> Tensor:
    """Return labels [B], whole numbers up to the null label `num_classes`. Raises SD-T925 for others."""
    highest = "" if num_classes is None else f" from 0 to {num_classes}"
    expect = f"a tensor of {count} whole numbers{highest}: one class per image"
    whole = isinstance(value, Tensor) and value.dtype in (torch.int32, torch.int64)
    if not whole or value.shape != (count,):
        raise error(
            "SD-T925", "these are not the labels of the images", where="labels", got=_kind(value), expect=expect
        )
    labels: Tensor = value
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high > num_classes):
        raise error("SD-T925", "a label is not a class", where="labels", got=f"{low} to {high}", expect=expect)
    return labels


def levels_argument(value: Any, name: str, count: int) -> Tensor:
    """Return finite noise levels [B], one per image. Raises SD-T925 for others."""
    expect = f"a tensor of {count} finite numbers: one level per image"
    if not isinstance(value, Tensor) or value.shape != (count,) or value.is_complex() or value.dtype == torch.bool:
        raise error("SD-T925", f"{name} holds no levels of the images", where=name, got=_kind(value), expect=expect)
    if not bool(torch.isfinite(value).all()):
        raise error("SD-T925", f"{name} is not finite", where=name, got="NaN or infinity", expect=expect)
    return value


def sigmas_argument(value: Any, count: int) -> list[float]:
    """Return noise levels above 0, from one number for all images or a tensor [B]. Raises SD-T925 for others."""
    if isinstance(value, Tensor) and value.dim():
        sigmas: list[float] = levels_argument(value, "sigma", count).tolist()
    else:
        try:
            if isinstance(value, (bool, str, bytes)):
                raise TypeError
            sigmas = [float(value)] * count
        except (TypeError, ValueError):
            expect = "a number above 0, or a tensor with one for each image"
            raise wrong_argument("sigma is not a noise level", "sigma", value, expect) from None
    if bad := [sigma for sigma in sigmas if not 0 < sigma < float("inf")]:
        raise error("SD-T925", "sigma is out of range", where="sigma", got=f"{bad[0]:g}", expect="finite, above 0")
    return sigmas


def visible_argument(value: Any, count: int, grid: tuple[int, int] | None = None) -> Tensor | None:
    """Return token numbers [B, K] within `grid`, or None for all tokens. Raises SD-T925 for others."""
    if value is None:
        return None
    fits = isinstance(value, Tensor) and value.dim() == 2 and len(value) == count and value.dtype == torch.int64
    if not fits or not value.numel() or bool((value < 0).any()):
        expect = f"None, or a tensor of token numbers [{count}, K] int64"
        raise error("SD-T925", "visible holds no tokens", where="visible", got=_kind(value), expect=expect)
    tokens: Tensor = value
    if grid is not None and int(tokens.max()) >= math.prod(grid):
        expect = f"token numbers from 0 to {math.prod(grid) - 1}"
        raise error("SD-T925", "there is no such token", where="visible", got=str(int(tokens.max())), expect=expect)
    return tokens


def network_argument(value: Any) -> Network:
    """Return `student` or `teacher`. Raises SD-T925 for anything else."""
    if value not in get_args(Network):
        raise wrong_argument("no such network", "network", value, one_of(str(value), get_args(Network)))
    network: Network = value
    return network


def checked_overrides(overrides: Any) -> list[str]:
    """Return changes of a recipe as texts. Raises SD-T925 for one that does not concern the sampling of a network."""
    if not isinstance(overrides, (str, list, tuple)):
        raise wrong_argument("overrides is not a list of texts", "overrides", overrides, '["sampler.steps=40"]')
    changes = [overrides] if isinstance(overrides, str) else [text_argument(text, "overrides") for text in overrides]
    for text in changes:
        key = text.partition("=")[0].strip()
        if "=" in text and key not in OVERRIDABLE and key.partition(".")[0] not in OVERRIDABLE:
            expect = 'keys of sampler and guidance, such as "sampler.steps=40"'
            raise error("SD-T925", f"{key!r} cannot change after training", where="overrides", got=text, expect=expect)
    return changes


def checked_config(config: Any) -> dict[str, Any]:
    """Return arguments of a published constructor. Raises SD-T925 for anything else than a mapping with text keys."""
    if config is None:
        return {}
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        expect = 'a mapping such as {"num_heads": 16}; for a file, json.load(open(FILE))'
        raise wrong_argument("config is not a mapping of arguments", "config", config, expect)
    return dict(config)


@contextmanager
def named_refusal(where: str) -> Iterator[None]:
    """Turn the ValueError with which a network refuses an argument into SD-T925."""
    try:
        yield
    except ValueError as refused:
        expect = "what the network can do"
        raise error("SD-T925", "the network refuses this", where=where, got=str(refused), expect=expect) from refused


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"{value!r:.80} ({type(value).__name__})"
