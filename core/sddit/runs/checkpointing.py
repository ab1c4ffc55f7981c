"""When checkpoints are written: within the step, or beside the steps that follow. No torch here."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from sddit.storage.checkpoints import Store
from sddit.storage.manifest import Content


class Saver:
    """Saves the checkpoints of a run. At most one save is under way.

    Within the step, `save` returns when the checkpoint is on the disk. Beside the steps it returns at once, and the contents
    must be copies that nothing changes; what goes wrong is raised by the next call of `save`, `poll` or `wait`, so that a
    save that failed is never taken for one that did not. Only `wait` says that all is saved.
    """

    def __init__(self, store: Store, *, beside: bool) -> None:
        self.store = store
        self.beside = beside
        self._ended: threading.Event | None = None  # set when the save under way is over; None: there is none
        self._failure: BaseException | None = None

    def save(self, step: int, files: Mapping[str, Content]) -> None:
        """Save the checkpoint of a step, after the one under way."""
        self.wait()
        if not self.beside:
            self.store.save(step, files)
            return
        self._ended = threading.Event()
        # A daemon, since the process must not wait for it after a second signal.
        threading.Thread(target=self._write, args=(step, files, self._ended), name=f"save-{step}", daemon=True).start()

    def poll(self) -> None:
        """Raise what went wrong, if a save has failed by now."""
        if self._ended is not None and self._ended.is_set():
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way. Raises what went wrong with it."""
        if self._ended is None:
            return
        self._ended.wait()  # no join: one that a signal cuts short takes a living thread for a dead one
        self._ended, failure, self._failure = None, self._failure, None
        if failure is not None:
            raise failure

    def abandon(self) -> None:
        """Give up the save under way, at once: nothing half-written stays. The process is about to end."""
        if self._ended is not None and not self._ended.is_set():
            self.store.withdraw()

    def _write(self, step: int, files: Mapping[str, Content], ended: threading.Event) -> None:
        try:
            self.store.save(step, files)
        except BaseException as failure:
            self._failure = failure
        finally:
            ended.set()
