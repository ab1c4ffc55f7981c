"""Inject faults for tests. Inert unless SDDIT_FAULT is set.

`SDDIT_FAULT=name:action[@n]` acts at the point `name`, each time or only the n-th time that it is reached. The action
is `kill`, which sends SIGKILL to this process, or `raise:ENOSPC`, which raises an OSError with that errno.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections import Counter

from sddit.errors import error, one_of

POINTS = {
    "ckpt.before_file": "before each file of a checkpoint is created",
    "ckpt.after_file": "after each file of a checkpoint is durable",
    "ckpt.before_manifest": "all files of a checkpoint are durable, its manifest is not written",
    "ckpt.before_rename": "a checkpoint is complete and durable, and not yet visible",
    "ckpt.after_rename": "a checkpoint is visible, its name not yet durable",
    "ckpt.before_prune": "a checkpoint is verified, older ones are still there",
    "ckpt.mid_prune": "an old checkpoint is renamed, its files are not yet removed",
}
"""{point: when it is reached}."""

ACTION = re.compile(r"(?P<action>kill|raise:(?P<errno>E[A-Z0-9]+))(?:@(?P<turn>[1-9]\d*))?")

reached: Counter[str] = Counter()
"""How often this process reached the point that SDDIT_FAULT names."""


def fault_point(name: str) -> None:
    """Carry out the fault that SDDIT_FAULT sets for this point. Raises SD-R160 for an unknown fault."""
    text = os.environ.get("SDDIT_FAULT")
    if text is None:
        return
    point, _, rest = text.partition(":")
    match = ACTION.fullmatch(rest)
    if point not in POINTS or match is None or match["errno"] not in (None, *errno.errorcode.values()):
        what, where = "SDDIT_FAULT names no known fault", "environment SDDIT_FAULT"
        expect = one_of(point, POINTS) if point not in POINTS else "name:action[@n] with action kill or raise:ERRNO"
        raise error("SD-R160", what, where=where, got=text, expect=expect)
    if point != name:
        return
    reached[name] += 1
    if match["turn"] not in (None, str(reached[name])):
        return
    print(f"fault: {name} {match['action']}", file=sys.stderr, flush=True)  # tests check that the point was reached
    if match["errno"] is None:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        number = getattr(errno, match["errno"])
        raise OSError(number, os.strerror(number))
