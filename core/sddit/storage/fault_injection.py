"""Inject faults for tests. Inert unless SDDIT_FAULT is set.

`SDDIT_FAULT=name:action[@n]` acts at the point `name`, each time or only the n-th time that it is reached:

    kill          SIGKILL to this process
    raise:ENOSPC  OSError with that errno
    sleep:0.5     wait for this many seconds
    nan           the point returns "nan", and its caller corrupts its own value
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
"""{point: when it is reached}."""

FORM = re.compile(r"([\w.]+):(kill|nan|raise:[A-Z0-9]+|sleep:[\d.]+)(?:@([1-9]\d*))?")

reached: Counter[str] = Counter()
"""How often this process reached the point that SDDIT_FAULT names."""


def fault_point(name: str) -> str:
    """Carry out the fault that SDDIT_FAULT sets for this point. Returns "nan" if the caller is to corrupt its value."""
    text = os.environ.get("SDDIT_FAULT")
    if text is None:
        return ""
    point, action, turn = parse_fault(text)
    if point != name:
        return ""
    reached[name] += 1
    if turn not in (None, reached[name]):
        return ""
    print(f"fault: {name} {action}", file=sys.stderr, flush=True)  # tests check that the point was reached
    kind, _, argument = action.partition(":")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "raise":
        number = getattr(errno, argument)
        raise OSError(number, os.strerror(number))
    elif kind == "sleep":
        time.sleep(float(argument))
    return "nan" if kind == "nan" else ""


def parse_fault(text: str) -> tuple[str, str, int | None]:
    """Return point, action and turn of `name:action[@n]`. Raises SD-R160 for any other text."""
    match = FORM.fullmatch(text)
    if match is None:
        raise _unknown_fault(text, "name:action[@n] with action kill, nan, raise:ERRNO or sleep:SECONDS")
    point, action, turn = match.groups()
    if point not in POINTS:
        raise _unknown_fault(text, one_of(point, POINTS))
    if action.startswith("raise:") and not hasattr(errno, action.removeprefix("raise:")):
        raise _unknown_fault(text, "the name of an errno, such as raise:ENOSPC")
    return point, action, int(turn) if turn else None


def _unknown_fault(text: str, expect: str) -> SdditError:
    return error(
        "SD-R160",
        "SDDIT_FAULT names no known fault",
        where="environment SDDIT_FAULT",
        got=text,
        expect=expect,
        fix="unset SDDIT_FAULT",
    )
