"""Encode shards in several processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import IO, Any

import torch

from sddit.distributed.subprocesses import Process, end_processes, start_process
from sddit.encoding.shard_plan import EncodingPlan
from sddit.encoding.shards import ShardEncoder, one_thread
from sddit.errors import Problem, SdditError, error
from sddit.interfaces import CodecParams, DatasetParams, Selected
from sddit.plugins.host import host
from sddit.recipes.image_source import component_of_words


def encode_in_processes(
    count: int,
    root: Path,
    plan: EncodingPlan,
    shards: Sequence[int],
    chosen: tuple[Selected[DatasetParams], Selected[CodecParams]],
    device: torch.device,
    on_message: Callable[[dict[str, int]], None],
) -> None:
    """Let process i of n encode the shards i, i + n, ...

    Args:
        count: number of processes.
        root: folder of the cache, which holds the plan.
        plan: the plan.
        shards: the shards that are left.
        chosen: data set and codec.
        device: with cuda, process i uses the device i, modulo their number.
        on_message: is called with `{"images": n}` after each part, and with `{"shard": number}` after each shard.

    Raises:
        SdditError: what a process raised, or SD-X801 for one that was killed. The others are ended first.
    """
    with tempfile.TemporaryFile() as log, DefaultSelector() as selector:
        workers: list[Process] = []
        try:
            for number in range(count):
                task = _task(root, plan, shards[number::count], chosen, device, number)
                workers.append(start_process(__name__, task, log, buffer=0))  # `select` sees what is not buffered
                assert workers[-1].stdout is not None
                selector.register(workers[-1].stdout, EVENT_READ, workers[-1])
            for message in _messages(selector, log):
                on_message(message)
        finally:
            end_processes(workers)


def _task(
    root: Path,
    plan: EncodingPlan,
    shards: Sequence[int],
    chosen: tuple[Selected[DatasetParams], Selected[CodecParams]],
    device: torch.device,
    number: int,
) -> dict[str, Any]:
    rows = [row for row in host().rows.values() if row.state == "loaded" and not row.builtin]
    place = f"cuda:{number % torch.cuda.device_count()}" if device.type == "cuda" else device.type
    return {
        "root": str(root),
        "plan": plan.model_dump(mode="json"),
        "shards": list(shards),
        "components": [one.to_json() for one in chosen],
        "plugins": [row.file or row.name for row in rows],
        "device": place,
        "parent": os.getpid(),
    }


def _messages(selector: DefaultSelector, log: IO[bytes]) -> Iterator[dict[str, int]]:
    """Yield the messages of all workers until each has said that it is done. Raises what one of them raised."""
    while selector.get_map():
        for key, _ in selector.select():
            worker: Process = key.data
            assert worker.stdout is not None
            line = worker.stdout.readline()
            if not line.endswith(b"\n"):
                raise _ended(worker, log)
            message = json.loads(line)
            if "problems" in message:
                raise SdditError(*(Problem(*fields) for fields in message["problems"]))
            if "done" in message:
                selector.unregister(worker.stdout)
            else:
                yield message


def _ended(worker: Process, log: IO[bytes]) -> SdditError:
    """Return the error of a process that ended without a message."""
    status = worker.wait()
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return error(
        "SD-X801",
        f"a process that encodes {how}",
        where="--nproc",
        got=lines[-1][:400] if lines else "no message",
        fix="rerun the same command to continue; SIGKILL often means that the machine ran out of memory",
    )


def _encode(task: dict[str, Any], say: Callable[..., None]) -> None:
    for plugin in task["plugins"]:
        host().use_given(plugin, where="command line")
    tables = zip(("datasets", "codecs"), ("dataset", "codec"), task["components"], strict=True)
    dataset, codec = (
        component_of_words(kind, settings.pop("name"), settings, table) for kind, table, settings in tables
    )
    plan = EncodingPlan.model_validate_json(json.dumps(task["plan"]))
    device = torch.device(task["device"])

    def advance(images: int) -> None:
        if os.getppid() != task["parent"]:  # that process was killed
            sys.exit(1)
        say(images=images)

    with one_thread(device):
        encoder = ShardEncoder(plan, dataset, codec, device)
        for shard in task["shards"]:
            encoder.encode(Path(task["root"]), shard, advance)
            say(shard=shard)


def _main() -> None:
    """Encode the shards that standard input names. An interrupt is left to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # messages are not mixed with what a library prints

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")

    try:
        _encode(json.load(sys.stdin), say)
    except SdditError as failure:
        say(problems=[astuple(problem) for problem in failure.problems])
    else:
        say(done=True)


if __name__ == "__main__":
    _main()
