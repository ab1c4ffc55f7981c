"""Read the entries of a .zip archive of images, within limits. No torch.

The list of entries is read by this module: `zipfile` keeps an object of about 700 bytes for each, and a lock around
each read. Nothing is extracted. Names, sizes and offsets are those of the central directory, and every entry is checked
against its CRC when it is read.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from sddit.errors import Problem, SdditError, error, raise_all
from sddit_standard.datasets.image_index import MAX_PROBLEMS, IndexBuilder
from sddit_standard.datasets.image_sources import (
    MAX_NPY_HEADER,
    MAX_RATIO,
    UNLIMITED_BYTES,
    SourceFile,
    is_hidden,
    is_image,
    object_array_problems,
    refused_entry,
    too_large,
)

LABELS = "dataset.json"
MAX_ENTRIES = 2**24
MAX_DIRECTORY_BYTES = 2**31

END = struct.Struct("<4s4H2LH")  # end of central directory; ZIP APPNOTE 4.3.16
END64_LOCATOR = struct.Struct("<4sLQL")  # 4.3.15
END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
ENTRY = struct.Struct("<4s6H3L5H2L")  # central directory header, 4.3.12
LOCAL = struct.Struct("<4s5H3L2H")  # local file header, 4.3.7
STORED, DEFLATED = 0, 8
ENCRYPTED, UTF8 = 0x1, 0x800
UNIX = 3
COLUMNS = 4  # of `ImageIndex.places`: offset of the local header, packed bytes, method, CRC


class Entry(NamedTuple):
    """An entry of the central directory."""

    name: str
    size: int
    packed: int
    offset: int
    method: int
    crc: int
    flags: int
    mode: int  # of Unix; 0 elsewhere

    @property
    def place(self) -> tuple[int, int, int, int]:
        return self.offset, self.packed, self.method, self.crc


def damaged(file: SourceFile, got: str) -> SdditError:
    """Return the error of an archive that is cut short or damaged (SD-D313)."""
    expect = "a whole .zip archive"
    return error("SD-D313", f"{file.path.name} is damaged or cut short", where=str(file.path), got=got, expect=expect)


def entries_of(file: SourceFile) -> Iterator[Entry]:
    """Yield the entries of the central directory. Raises SD-D313."""
    count, directory, shift = _central_directory(file)
    at = 0
    for _ in range(count):
        try:
            entry, at = _entry_at(directory, at, shift)
        except (struct.error, ValueError) as broken:
            raise damaged(file, f"its list of entries: {broken}") from None
        if entry.offset + entry.packed > file.stamp[0] or (entry.method == STORED and entry.size != entry.packed):
            raise damaged(file, f"{entry.name} is not inside the file, or has another size")
        yield entry
    if at != len(directory):
        raise damaged(file, f"a list of {count:,} entries that ends before its end")


def _central_directory(file: SourceFile) -> tuple[int, bytes, int]:
    """Return number of entries, the bytes of the directory, and how far all offsets are shifted by bytes before it."""
    length = file.stamp[0]
    start = max(0, length - 2**16 - END.size)
    tail = file.read(start, length - start, "the list of entries")
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + END.size > len(tail):
        raise damaged(file, "no list of entries at its end")
    end = END.unpack_from(tail, at)
    count, size, offset, stop = end[4], end[5], end[6], start + at
    locator = at - END64_LOCATOR.size
    if locator >= 0 and tail.startswith(b"PK\6\7", locator):
        stop = END64_LOCATOR.unpack_from(tail, locator)[2]
        record = file.read(stop, END64.size, "the list of entries")
        if len(record) < END64.size or not record.startswith(b"PK\6\6"):
            raise damaged(file, "the end of its list of entries")
        count, size, offset = END64.unpack(record)[7:10]
    shift = stop - size - offset
    if count > MAX_ENTRIES or size > min(length, MAX_DIRECTORY_BYTES) or shift < 0 or count * ENTRY.size > size:
        raise damaged(file, f"a list of {count:,} entries in {size:,} bytes")
    return count, file.read(offset + shift, size, "the list of entries"), shift


def _entry_at(directory: bytes, at: int, shift: int) -> tuple[Entry, int]:
    """Return an entry and where the next one begins."""
    fields = ENTRY.unpack_from(directory, at)
    if fields[0] != b"PK\1\2":
        raise ValueError(f"no entry at byte {at:,}")
    system, flags, method, crc = fields[1] >> 8, fields[3], fields[4], fields[7]
    packed, size, offset, attributes = fields[8], fields[9], fields[16], fields[15]
    start = at + ENTRY.size
    end = start + fields[10]
    following = end + fields[11] + fields[12]
    if following > len(directory):
        raise ValueError("it ends inside an entry")
    if 0xFFFFFFFF in (packed, size, offset):
        size, packed, offset = _large(directory[end : end + fields[11]], size, packed, offset)
    name = _decoded(directory[start:end], flags)
    mode = attributes >> 16 if system == UNIX else 0
    return Entry(name, size, packed, offset + shift, method, crc, flags, mode), following


def _decoded(name: bytes, flags: int) -> str:
    """Return a name. Bytes that are not UTF-8, where the entry says that they are, become lone surrogates."""
    return name.decode("utf-8", "surrogateescape") if flags & UTF8 else name.decode("cp437")


def _large(extra: bytes, *values: int) -> list[int]:
    """Return size, packed size and offset; those that do not fit 32 bits are in the extra field (4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return [next(numbers, value) if value == 0xFFFFFFFF else value for value in values]
        at += 4 + length
    return list(values)


def read_entry(file: SourceFile, name: str, size: int, place: tuple[int, int, int, int], limit: int = 0) -> bytes:
    """Return the unpacked bytes of an entry, or its first `limit`. Raises SD-D313 if they are not what is listed."""
    offset, packed, method, crc = place
    header = file.read(offset, LOCAL.size, name)
    if len(header) < LOCAL.size or not header.startswith(b"PK\3\4"):
        raise damaged(file, f"no entry where {name} should be")
    fields = LOCAL.unpack(header)
    name_length, start = fields[9], fields[9] + fields[10]
    data = file.read(offset + LOCAL.size, start + packed, name)
    if _decoded(data[:name_length], fields[2]) != name:
        raise damaged(file, f"another entry where {name} should be")
    data = data[start:]
    if len(data) < packed:
        raise damaged(file, f"{name} is cut short")
    if method == DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, limit or size + 1)  # a size may be false
        except zlib.error as broken:
            raise damaged(file, f"{name}: {broken}") from None
    if limit:
        return data[:limit]
    if len(data) != size or zlib.crc32(data) != crc:
        raise damaged(file, f"{name} has another length or CRC than listed")
    return data


def list_entries(file: SourceFile) -> tuple[IndexBuilder, set[str], Entry | None]:
    """Return the images, the folders at the top, and dataset.json. Raises SD-D310, -D311, -D312, -D313 or -D322."""
    found, tops, labels = IndexBuilder(COLUMNS), set[str](), None
    for entry in entries_of(file):
        if entry.name == LABELS:
            labels = entry
        if is_hidden(entry.name):
            continue
        if "/" in entry.name:
            tops.add(entry.name.partition("/")[0])
        if entry.name.endswith("/"):
            continue
        if problem := _entry_problem(file, entry):
            found.problems.append(problem)
            if len(found.problems) >= MAX_PROBLEMS:
                break
        elif is_image(entry.name):
            found.add(entry.name.encode(), entry.size, *entry.place)
        else:
            found.others += entry.name != LABELS
    raise_all(found.problems)
    return found, tops, labels


def _entry_problem(file: SourceFile, entry: Entry) -> Problem | None:
    """Return why an entry is refused."""
    where = f"{file.path}: {entry.name}"
    if refused := refused_entry(entry.name, str(file.path)):
        return refused
    if entry.mode and stat.S_IFMT(entry.mode) not in (0, stat.S_IFREG):
        return Problem("SD-D312", "an entry is a link or a device", where, expect="files", fix="put the file itself in")
    if not is_image(entry.name) and entry.name != LABELS and not entry.name.lower().endswith(".npy"):
        return None  # it is not read
    if entry.flags & ENCRYPTED or entry.method not in (STORED, DEFLATED):
        got = "an encrypted entry" if entry.flags & ENCRYPTED else f"compression method {entry.method}"
        return Problem("SD-D313", "an entry is packed in a way that is not read", where, got, "stored or deflated")
    if entry.size > max(UNLIMITED_BYTES, MAX_RATIO * entry.packed):
        got = f"{entry.packed:,} bytes that unpack to {entry.size:,}"
        return Problem("SD-D311", "an entry unpacks to far more than it is", where, got, f"at most {MAX_RATIO} times")
    if entry.name.lower().endswith(".npy"):
        data = read_entry(file, entry.name, entry.size, entry.place, MAX_NPY_HEADER)
        return next(object_array_problems(data, entry.name, str(file.path)), None)
    return too_large(entry.name, where, entry.size) if is_image(entry.name) else None
