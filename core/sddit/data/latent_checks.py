"""Check what is written to a cache of latents. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sddit.data.class_names import listed
from sddit.data.latent_statistics import Finding, Layout, MomentStatistics, scaled_findings
from sddit.errors import Problem, error, one_of, raise_all

ALLOW = "allow_implausible"  # key of the index, and argument of `write_cache`
ALLOWED_IN_INDEX = f'set "{ALLOW}": true in latents.json'
ALLOWED_WHEN_WRITTEN = f"pass {ALLOW}=True (--allow-implausible of sddit-run encode and pack)"

NEGATIVE = 'if these are log-variances: "mean+logvar"; if channels are the last axis (NHWC): transpose(0, 3, 1, 2)'


def refuse_unfit(moments: NDArray[Any], labels: NDArray[np.int64], shape: tuple[int, ...], where: str) -> None:
    """Raise SD-D308 for moments of another shape than the first shard's, or of another number than the labels."""
    if moments.shape[1:] != shape or len(moments) != len(labels):
        got = f"moments {moments.shape}, labels {labels.shape}"
        expect = f"(n, {', '.join(map(str, shape))}) and (n,)"
        raise error("SD-D308", "shards do not fit together", where=where, got=got, expect=expect)


def usable_moments(moments: ArrayLike, layout: Layout, where: str) -> NDArray[Any]:
    """Return moments as an array [n, 2C, h, w]. Raises SD-D308 for what cannot be moments, SD-D341 for a layout."""
    array = np.ascontiguousarray(moments)
    if layout not in get_args(Layout):
        raise error(
            "SD-D341", f"unknown layout of latents {layout!r}", where=where, expect=one_of(layout, get_args(Layout))
        )
    if array.ndim != 4 or array.shape[1] % 2 or 0 in array.shape or array.dtype not in (np.float16, np.float32):
        raise error(
            "SD-D308",
            "these arrays cannot be moments",
            where=where,
            got=f"{array.dtype} {array.shape}",
            expect="float16 or float32 of shape (n, 2C, h, w): C means, then C log-variances or standard deviations",
        )
    if not np.isfinite(array).all():
        raise error("SD-D308", "moments hold NaN or infinity", where=where, fix="encode in float32")
    if layout == "mean+std" and array[:, array.shape[1] // 2 :].min() < 0:
        raise error("SD-D308", "a standard deviation is negative", where=where, fix=NEGATIVE)
    return array


def usable_labels(labels: ArrayLike, classes: int, where: str) -> NDArray[np.int64]:
    """Return labels as an array [n]. Raises SD-D307 for anything but numbers of the `classes` classes."""
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise error(
            "SD-D307",
            "these arrays cannot be labels",
            where=where,
            got=f"{array.dtype} {array.shape}",
            expect="whole numbers (n,)",
        )
    highest = max(classes, 1) - 1
    if len(array) and not 0 <= array.min() <= array.max() <= highest:
        got, expect = f"{array.min()} to {array.max()}", f"0 to {highest}"
        fix = "" if classes else "name the classes: --classes of sddit-run pack, class_names of write_cache"
        raise error("SD-D307", "a label is out of range", where=where, got=got, expect=expect, fix=fix)
    return array.astype(np.int64)


def warn_of_unused(names: Sequence[str], seen: set[int]) -> None:
    """Warn of classes that no latent has: a model would be asked for what it never saw."""
    if unused := sorted(set(range(len(names))) - seen):
        warnings.warn(f"no latent has the classes {listed(unused, names)}: nothing trains them", stacklevel=4)


def implausible_problems(findings: Iterable[Finding], where: str, allow: str = ALLOWED_IN_INDEX) -> Iterator[Problem]:
    """Yield the problems SD-D344 of findings, with how to allow them."""
    for what, got, fix in findings:
        yield Problem("SD-D344", what, where, got, fix=f"{fix}; if the latents really are so, {allow}")


def refuse_implausible(
    statistics: MomentStatistics, layout: Layout, shape: Sequence[int], scale: float, root: Path
) -> None:
    """Raise SD-D344 for the first thing that is implausible about what is written: the others may follow from it."""
    _, std, spread = statistics.scaled(scale)
    found = chain(statistics.findings(layout, shape), scaled_findings(std, spread, scale))
    raise_all(implausible_problems(islice(found, 1), str(root), ALLOWED_WHEN_WRITTEN))
