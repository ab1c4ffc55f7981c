"""Run all checks and report each result as a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from sddit.errors import SdditError, describe_exception
from sddit.interfaces import CheckContext, CheckSkipped, Component, Measurement
from sddit.interfaces.component import load_attribute
from sddit.plugins.host import host
from sddit.progress import Progress


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `reason` is set if nothing was measured."""

    of: str  # the component, such as `losses edm/denoising`, or the plugin of a check that belongs to none
    check: str
    verdict: Literal["pass", "FAIL", "skipped"]
    measurement: Measurement | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON. NaN and infinity, which JSON does not have, become text."""
        measured: dict[str, Any] = {"what": None, "value": None, "tolerance": None, "relation": None}
        if self.measurement is not None:
            measured = asdict(self.measurement)
            measured["value"] = value if math.isfinite(value := self.measurement.value) else str(value)
        return {"of": self.of, "check": self.check, **measured, "verdict": self.verdict, "reason": self.reason}


def verify(context: CheckContext | None = None, progress: Progress | None = None) -> Iterator[Row]:
    """Run every check of the loaded plugins, and yield a row for each measurement.

    Args:
        context: device, thoroughness and folders of stored numbers; None: quick checks on the CPU.
        progress: shows the progress.
    """
    context, progress = context or CheckContext(), progress or Progress()
    checks = list(every_check())
    progress.stage("verify", total=len(checks))
    with one_thread():
        for of, name, load, component in checks:
            yield from rows_of(of, name, load, replace(context, component=component))
            progress.tick()
    progress.end_stage()


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one CPU thread: the tensors are tiny, and threads would wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def every_check() -> Iterator[tuple[str, str, Callable[[], Any], Component[Any]]]:
    """Yield (owner, name, loader, component) of each check: those without a component first, then by kind and name."""
    registries = host().registries
    for check in registries.checks:
        yield check.origin, check.summary, check.load, check
    for kind, registry in registries.all().items():
        for component in registry:
            for name, path in component.checks:
                yield f"{kind} {component.qualified}", name, partial(load_attribute, path), component


def rows_of(of: str, name: str, load: Callable[[], Any], context: CheckContext) -> Iterator[Row]:
    """Yield the measurements of one check, or the reason why there are none. An exception counts as a failure."""
    if context.component is not None and (missing := context.component.missing()):
        yield Row(of, name, "skipped", reason=f"{', '.join(missing)} is not installed")
        return
    try:
        for found in load()(context):
            yield Row(of, name, "pass" if found.holds else "FAIL", found)
    except CheckSkipped as absent:
        yield Row(of, name, "skipped", reason=str(absent))
    except SdditError as refusal:
        yield Row(of, name, "FAIL", reason=refusal.problems[0].what)
    except Exception as failure:
        yield Row(of, name, "FAIL", reason=describe_exception(failure))
