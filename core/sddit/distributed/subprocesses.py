"""Start processes of this program that get a task on standard input and answer on standard output. Torch-free."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import IO, Any

Process = subprocess.Popen[bytes]


def start_process(module: str, task: Any, log: IO[bytes], *, buffer: int = -1) -> Process:
    """Run a module with a task in a process that imports from where this one does, and runs none of the user's program.

    Args:
        module: its dotted name.
        task: what it reads from standard input, as JSON.
        log: where its standard error goes.
        buffer: bytes of standard output that are read ahead, as of `open`.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(task).encode())
        file.seek(0)
        command = [sys.executable, "-P", "-m", module]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=file, stdout=pipe, stderr=log, env=environment, bufsize=buffer)


def end_processes(processes: Iterable[Process]) -> None:
    """End processes that may be running, and wait for their end."""
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
