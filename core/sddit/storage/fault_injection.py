"""Faults on demand, so that tests can break a run where it hurts. Inert unless SDDIT_FAULT is set.

`SDDIT_FAULT=name:action[@n]` acts at the point `name`: each time it is reached, or with `@n` the n-th time only.

    kill          SIGKILL to this process
    raise:ENOSPC  OSError with that errno
    sleep:0.5     wait so many seconds
    nan           the point returns "nan", and its caller spoils its own value
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sddit.errors import SdditError, error, one_of

POINTS: Mapping[str, str] = {
    "ckpt.before_file": "before each file of a checkpoint is created",
    "ckpt.after_file": "after each file of a checkpoint is durable",
    "ckpt.before_manifest": "all files of a checkpoint are durable, its manifest is not written",
    "ckpt.before_rename": "a checkpoint is complete and durable, and not yet visible",
    "ckpt.after_rename": "a checkpoint is visible, its name not yet durable",
    "ckpt.before_prune": "a checkpoint is verified, older ones are still there",
    "ckpt.mid_prune": "an old checkpoint is renamed, its files are not yet removed",
}
"""Every point there is, and when it is reached."""

reached: Counter[str] = Counter()
"""How often the point that SDDIT_FAULT names was reached in this process."""

FORM = re.compile(r"(?P<point>[\w.]+):(?P<action>kill|nan|raise:[A-Z0-9]+|sleep:[\d.]+)(@(?P<turn>[1-9]\d*))?")


@dataclass(frozen=True, slots=True)
class Fault:
    """What SDDIT_FAULT asks for."""

    point: str
    action: str  # kill, nan, raise:ERRNO or sleep:SECONDS
    turn: int | None  # the n-th time only; None: every time


def fault_point(name: str) -> str:
    """Act out the fault that SDDIT_FAULT plants here. Returns `nan` if the caller is to spoil its value, else nothing."""
    text = os.environ.get("SDDIT_FAULT")
    if text is None:
        return ""
    fault = parse(text)
    if fault.point != name:
        return ""
    reached[name] += 1
    if fault.turn not in (None, reached[name]):
        return ""
    print(f"fault: {name} {fault.action}", file=sys.stderr, flush=True)  # tests look for this: the point fired
    return act(fault.action)


def parse(text: str) -> Fault:
    """`name:action[@n]`, or an SdditError that says what is wrong with it."""
    match = FORM.fullmatch(text)
    if match is None:
        raise refused(text, "name:action[@n] with action kill, nan, raise:ERRNO or sleep:SECONDS")
    if match["point"] not in POINTS:
        raise refused(text, one_of(match["point"], POINTS))
    action: str = match["action"]
    if action.startswith("raise:") and not hasattr(errno, action.removeprefix("raise:")):
        raise refused(text, "the name of an errno, such as raise:ENOSPC")
    return Fault(match["point"], action, int(match["turn"]) if match["turn"] else None)


def act(action: str) -> str:
    """Carry out one action."""
    kind, _, argument = action.partition(":")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "raise":
        number = getattr(errno, argument)
        raise OSError(number, os.strerror(number))
    elif kind == "sleep":
        time.sleep(float(argument))
    return "nan" if kind == "nan" else ""


def refused(text: str, expect: str) -> SdditError:
    return error(
        "SD-R160",
        "SDDIT_FAULT names no known fault",
        where="environment SDDIT_FAULT",
        got=text,
        expect=expect,
        fix="unset SDDIT_FAULT",
    )
