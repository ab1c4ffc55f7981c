"""Memory that runs out, told so that a person can act. Nothing of the experiment is changed for them. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sddit.errors import SdditError, error

HOST = re.compile(r"DefaultCPUAllocator: (can't|not enough memory)|std::bad_alloc|Cannot allocate memory")


@contextmanager
def memory_errors(where: str, *, got: str, fix: str) -> Iterator[None]:
    """Turn what torch, NumPy or Python raise when memory runs out into SD-M601, with what was tried and what would take less."""
    try:
        yield
    except (MemoryError, RuntimeError) as failure:
        if ran_out(failure):
            raise out_of_memory(failure, where, got, fix) from failure
        raise


def ran_out(failure: BaseException) -> bool:
    """Whether an exception says that memory, a device's or the computer's, ran out."""
    return isinstance(failure, MemoryError) or (
        type(failure).__name__ == "OutOfMemoryError" or HOST.search(str(failure)) is not None
    )


def out_of_memory(failure: BaseException, where: str, got: str, fix: str) -> SdditError:
    """SD-M601."""
    first = str(failure).partition("\n")[0].partition(". ")[0][:160]
    return error("SD-M601", f"out of memory: {first or 'none is left'}", where=where, got=got, fix=fix)
