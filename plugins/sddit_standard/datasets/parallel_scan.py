"""List the images of a large source in several processes. No torch."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import astuple
from importlib import import_module
from typing import IO, Any

from sddit.distributed.subprocesses import Process, end_processes, start_process
from sddit.errors import Problem, SdditError
from sddit_standard.datasets.image_index import IndexBuilder

SERIAL_SECONDS = 2.0
"""Time after which the parts that are left are given to other processes; most data sets are listed before."""
ARRAYS = ("ends", "hashes", "labels", "sizes", "places")

Scan = Callable[[Any], IndexBuilder]


def scan_parts(function: str, parts: Sequence[Any], columns: int) -> IndexBuilder:
    """Return what a function finds in all parts, in their order, at any number of processes.

    Args:
        function: "module:name" of a function of one part that returns an IndexBuilder of `columns` columns.
        parts: JSON values.
    """
    scan, found, deadline = _function(function), IndexBuilder(columns), time.monotonic() + SERIAL_SECONDS
    for done, part in enumerate(parts):
        if time.monotonic() > deadline and len(parts) - done > 1:
            _scan_in_processes(function, parts[done:], found)
            break
        found.extend(_sorted_scan(scan, part))
    return found


def _sorted_scan(scan: Scan, part: Any) -> IndexBuilder:
    found = scan(part)
    found.sort()  # a whole that is sorted part by part needs no memory to be sorted
    return found


def _function(name: str) -> Scan:
    module, _, attribute = name.partition(":")
    scan: Scan = getattr(import_module(module), attribute)
    return scan


def _scan_in_processes(function: str, parts: Sequence[Any], found: IndexBuilder) -> None:
    """Add what is found in the parts. Process i of n scans the parts i, i + n, ..., and waits until each is read."""
    count = min(len(os.sched_getaffinity(0)), len(parts))
    workers: list[Process] = []
    with tempfile.TemporaryFile() as said:
        try:
            tasks = ([function, list(parts[number::count])] for number in range(count))
            workers.extend(start_process(__name__, task, said) for task in tasks)
            for number in range(len(parts)):
                _read_result(workers[number % count], found, said)
        finally:
            end_processes(workers)


def _read_result(worker: Process, found: IndexBuilder, said: IO[bytes]) -> None:
    """Add the next part of a worker. Raises SdditError as the function did."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line.endswith(b"\n"):
        said.seek(0)
        raise RuntimeError(f"a process that lists images ended early: {said.read().decode(errors='replace')[-2000:]}")
    header = json.loads(line)
    problems = [Problem(*fields) for fields in header["problems"]]
    if header["is_refused"]:
        raise SdditError(*problems)
    part = IndexBuilder(found.columns)
    part.others, part.problems = header["others"], problems
    part.text += worker.stdout.read(header["text"])
    for name in ARRAYS:
        values: array[int] = getattr(part, name)
        values.frombytes(worker.stdout.read(header[name] * values.itemsize))
    found.extend(part)


def _write_result(scan: Scan, part: Any, out: IO[bytes]) -> None:
    """Write what is found in a part: a line of JSON with counts and problems, then the arrays."""
    try:
        found, is_refused = _sorted_scan(scan, part), False
    except SdditError as refused:
        found, is_refused = IndexBuilder(0), True
        found.problems += refused.problems
    header = {"is_refused": is_refused, "others": found.others, "text": len(found.text)}
    header |= {name: len(getattr(found, name)) for name in ARRAYS}
    problems = [astuple(problem) for problem in found.problems]
    out.write(json.dumps({**header, "problems": problems}).encode() + b"\n")
    out.write(found.text)
    for name in ARRAYS:
        out.write(getattr(found, name).tobytes())
    out.flush()


def _main() -> None:
    """Scan the parts that standard input names. An interrupt is left to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    function, parts = json.load(sys.stdin)
    scan = _function(function)
    for part in parts:
        _write_result(scan, part, sys.stdout.buffer)


if __name__ == "__main__":
    _main()
