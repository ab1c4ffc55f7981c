"""When checkpoints are written: within the step, or beside the steps that follow. No torch here."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from sddit.training.checkpoints import Store
from sddit.training.sealed import Content


class Saver:
    """Saves the checkpoints of a run. At most one save is under way.

    Within the step, `save` returns when the checkpoint is on the disk. Beside the steps it returns at once, and the contents
    must be copies that nothing changes; what goes wrong is raised by the next call of `save`, `poll` or `wait`, so that a
    save that failed is never taken for one that did not. Only `wait` says that all is saved.
    """

    def __init__(self, store: Store, *, beside: bool) -> None:
        self.store = store
        self.beside = beside
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, step: int, files: Mapping[str, Content]) -> None:
        """Save the checkpoint of a step, after the one under way."""
        self.wait()
        if not self.beside:
            self.store.save(step, files)
            return
        self._thread = threading.Thread(target=self._write, args=(step, files), name=f"save-{step}", daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Raise what went wrong, if a save has failed by now."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way. Raises what went wrong with it."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread, failure, self._failure = None, self._failure, None
        if failure is not None:
            raise failure

    def abandon(self) -> None:
        """Give up the save under way, at once: nothing half-written stays. The process is about to end."""
        if self._thread is not None and self._thread.is_alive():
            self.store.withdraw()

    def _write(self, step: int, files: Mapping[str, Content]) -> None:
        try:
            self.store.save(step, files)
        except BaseException as failure:
            self._failure = failure
