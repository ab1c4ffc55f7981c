"""Write checkpoints within the step, or in the background of the following steps. Torch-free."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import Future

from sddit.storage.checkpoints import Store
from sddit.storage.manifest import Content


class Saver:
    """Save the checkpoints of a run, at most one at a time.

    In the foreground, `save` returns when the checkpoint is on disk. In the background it returns at once, and the
    contents must be copies that nothing changes. A failed background save raises at the next call of `save`, `poll` or
    `wait`, so that it cannot go unnoticed. Only `wait` guarantees that everything is saved.
    """

    def __init__(self, store: Store, *, background: bool) -> None:
        self.store = store
        self.background = background
        self._saving: Future[None] | None = None  # the save in progress

    def save(self, step: int, files: Mapping[str, Content]) -> None:
        """Save the checkpoint of a step, after the save in progress."""
        self.wait()
        if not self.background:
            self.store.save(step, files)
            return
        self._saving = Future()
        # A daemon, since the process must not wait for it after a second signal.
        threading.Thread(target=self._write, args=(step, files, self._saving), name=f"save-{step}", daemon=True).start()

    def poll(self) -> None:
        """Raise the exception of a background save that has failed."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the save in progress. Raises its exception if it fails."""
        if self._saving is not None:
            futures.wait([self._saving])  # not join(): interrupted by a signal, it takes a running thread for finished
            saving, self._saving = self._saving, None
            saving.result()

    def abandon(self) -> None:
        """Abandon the save in progress and remove its files. For a process that is about to end."""
        if self._saving is not None and not self._saving.done():
            self.store.withdraw()

    def _write(self, step: int, files: Mapping[str, Content], saving: Future[None]) -> None:
        try:
            self.store.save(step, files)
            saving.set_result(None)
        except BaseException as failure:
            saving.set_exception(failure)
