"""Find the tensors of a network under the names that wrappers and training programs give them.

DDP, torch.compile, FSDP and modules around a network add components to the names of its parameters, in any order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from sddit.errors import error, one_of

WRAPPERS = ("module", "_orig_mod", "model", "ema_model", "_fsdp_wrapped_module", "_forward_module")
"""Components that wrappers put in front of a name."""

INNER = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Components that torch.compile, FSDP and activation checkpointing put inside a name when they wrap single blocks."""

UNREADABLE = (KeyError, ValueError, IndexError)  # what a layout raises for tensors that are not its own

R = TypeVar("R")
State = Mapping[str, Tensor]
Read = Callable[[State], R]


@dataclass(frozen=True, slots=True)
class Found(Generic[R]):
    """The tensors of one network, as a layout reads them."""

    content: R
    set_name: str  # the prefix that chose them among others; empty: all tensors
    notes: tuple[str, ...]  # what was renamed and dropped


def find_network(state: State, read: Read[R], where: str = "") -> Found[R]:
    """Read a network from tensors whose names may have the prefixes of wrappers.

    Names that a layout reads stay as they are. Otherwise a prefix that all names share is removed, as often as needed;
    otherwise the tensors of one prefix are the network, as in a file with `model.` and `ema_model.`.

    Args:
        state: tensors by name.
        read: reads tensors in a layout; raises one of UNREADABLE if they are of another one.
        where: the file, for messages.

    Raises:
        SdditError: SD-C459 if only some names have the prefix of a wrapper, SD-C446 if several sets can be read.
    """
    failure: Exception | None = None
    shared, inside = "", state
    for shared, inside in _unwrapped(state):
        try:
            content = read(_without_inner(inside))
        except UNREADABLE as unreadable:
            failure = unreadable if failure is None or shared.split(".")[-2] in WRAPPERS else failure
        else:
            return Found(content, "", _renamed(shared, inside))
    assert failure is not None
    sets = _readable_sets(inside, read)
    if not sets:
        _refuse_partly_wrapped(inside, where)
        raise failure
    name = _chosen(sets, where)
    chosen, prefix, content = sets[name]
    return Found(content, name, (*_renamed(f"{shared}{prefix}", chosen), _dropped(inside, name)))


def _unwrapped(state: State) -> Iterator[tuple[str, State]]:
    """Yield (prefix, tensors without it): first all names as they are, then without each component that all share."""
    prefix = ""
    while True:
        yield prefix, state
        first = {name.partition(".")[0] for name in state}
        if len(first) != 1 or not all("." in name for name in state):
            return
        component = f"{first.pop()}."
        prefix, state = prefix + component, {name.removeprefix(component): t for name, t in state.items()}


def _without_inner(state: State) -> State:
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        bare = INNER.sub("", name)
        if bare in found:
            raise ValueError(f"two tensors have the name {bare}, one of them inside a wrapper")
        found[bare] = tensor
    return found


def _readable_sets(state: State, read: Read[R]) -> dict[str, tuple[State, str, R]]:
    """Return {first component: (tensors, prefix, content)} of the groups that a layout can read, "" for the rest."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        first, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(first, {})[rest] = tensor
    sets = {first: one for first, group in groups.items() if (one := _first_readable(group, f"{first}.", read))}
    others = {name: tensor for name, tensor in state.items() if name.partition(".")[0] not in sets}
    if sets and others and (one := _first_readable(others, "", read)):
        sets[""] = one
    return sets


def _first_readable(state: State, prefix: str, read: Read[R]) -> tuple[State, str, R] | None:
    for shared, inside in _unwrapped(state):
        try:
            return inside, f"{prefix}{shared}", read(_without_inner(inside))
        except UNREADABLE:
            continue
    return None


def _chosen(sets: Mapping[str, object], where: str) -> str:
    """Return the set to take: the only one, else the only EMA, else `model`."""
    averages = [name for name in sets if "ema" in name.split("_")]
    for names in (list(sets), averages, [] if averages or "" in sets else [name for name in sets if name == "model"]):
        if len(names) == 1:
            return names[0]
    named = [name for name in sets if name]
    raise error(
        "SD-C446",
        "the file has several sets of weights",
        where=where,
        got=", ".join(f"{name}." if name else "names without a prefix" for name in sets),
        expect=one_of("", named),
        fix=f"--weights {named[0]}, for example",
    )


def _refuse_partly_wrapped(state: State, where: str) -> None:
    """Raise SD-C459 if some names begin with a wrapper's prefix and others do not."""
    wrapped = [name for name in state if name.partition(".")[0] in WRAPPERS]
    others = [name for name in state if name.partition(".")[0] not in WRAPPERS]
    prefixes = {f"{name.partition('.')[0]}." for name in wrapped}
    if wrapped and (others or len(prefixes) > 1):
        rest = f"; {len(others)} have none, such as {others[0]}" if others else ""
        counts = [f"{sum(name.startswith(p) for name in wrapped)} have {p!r}" for p in sorted(prefixes)]
        raise error(
            "SD-C459",
            "the names of the tensors have different prefixes, and none of their groups is a complete network",
            where=where,
            got=f"of {len(state)} names {', '.join(counts)}{rest}",
            expect="one prefix for all tensors of a network, or none",
            fix="write the tensors of one network to the file, under equal prefixes",
        )


def _renamed(prefix: str, state: State) -> tuple[str, ...]:
    """Return notes on a prefix that was removed from names, and on components inside them."""
    inner = [match[0] for name in state if (match := INNER.search(name))]
    notes = [f"renamed: the prefix {prefix!r} was removed from {len(state)} names"] if prefix else []
    notes += [f"renamed: wrappers inside {len(inner)} names were removed, such as {inner[0]!r}"] if inner else []
    return tuple(notes)


def _dropped(state: State, name: str) -> str:
    """Return a note on the tensors of `state` that are not of the set `name`."""
    others = [key for key in state if not key.startswith(f"{name}.")]
    groups = sorted({key.partition(".")[0] for key in others})
    more = ", ..." if len(groups) > 6 else ""
    return f"dropped: {len(others)} tensors under other names: {', '.join(groups[:6])}{more}"
