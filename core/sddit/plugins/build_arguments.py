"""Check what a component is built with from Python. Torch-free."""

from __future__ import annotations

import inspect
import json
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from sddit.errors import Problem, error, nearest, raise_all
from sddit.interfaces import Component, DataFacts, Split


@dataclass(frozen=True, slots=True)
class Argument:
    """One run-time argument of a kind of component."""

    meaning: str
    fits: Callable[[Any], bool]


def _whole(value: Any, low: int = 0) -> bool:
    try:
        return not isinstance(value, bool) and operator.index(value) >= low
    except TypeError:
        return False


def _sizes(count: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (tuple, list)) and len(value) == count and all(_whole(n, 1) for n in value)


def _numbers(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(number, (int, float)) for number in value)


IMAGE = Argument("(C, H, W) of the images as the network sees them", _sizes(3))
CLASSES = Argument("the number of classes", _whole)
GRID = Argument("rows and columns of tokens, such as (16, 16)", _sizes(2))
CHANNELS = Argument("a number for each channel of the data as the network sees it", _numbers)
DEVICE = Argument("a torch.device, or its name", lambda value: hasattr(value, "type"))
SCHEDULE = Argument('a noise schedule, from build("noise_schedules", ...)', lambda value: hasattr(value, "sigma_range"))

ARGUMENTS: Mapping[str, Mapping[str, Argument]] = {
    "backbones": {
        "image": IMAGE,
        "num_classes": CLASSES,
        "outputs": Argument("the number of outputs per channel, 2 with a learned variance", lambda n: _whole(n, 1)),
        "attention": Argument('an attention kernel, from build("attention", "eager")', callable),
    },
    "losses": {
        "widths": Argument("{tap: width of its tokens}", lambda value: isinstance(value, Mapping)),
        "grid": GRID,
        "image": IMAGE,
        "num_classes": CLASSES,
        "mean": CHANNELS,
        "std": CHANNELS,
    },
    "pair_samplers": {"grid": GRID},
    "samplers": {"schedule": SCHEDULE},
    "guidances": {"schedule": SCHEDULE},
    "datasets": {"split": Argument("train or test", lambda value: value in get_args(Split))},
    "codecs": {
        "facts": Argument(
            "the DataFacts of the latents that it decodes; None: it encodes images",
            lambda value: value is None or isinstance(value, DataFacts),
        ),
        "device": DEVICE,
    },
    "features": {
        "facts": Argument(
            "the DataFacts of the images: model.require_recipe().facts, or dataset.facts",
            lambda value: isinstance(value, DataFacts),
        ),
        "device": DEVICE,
    },
    "trackers": {"folder": Argument("the folder of the run, a Path", lambda value: isinstance(value, Path))},
}
"""{kind: {run-time argument: what it is}}. The other kinds are built from their settings alone."""


def check_settings(kind: str, name: str, settings: Any) -> dict[str, Any]:
    """Return the settings of a component as a dict. Raises SD-T926 for what a recipe could not hold."""
    where = f"sddit.build({kind!r}, {name!r})"
    if not isinstance(settings, Mapping):
        got = f"{settings!r:.80} ({type(settings).__name__})"
        raise error("SD-T926", "params is not a mapping of settings", where=where, got=got, expect='{"key": value}')
    try:
        json.dumps(dict(settings), allow_nan=False)
    except (TypeError, ValueError) as failure:
        expect = "numbers, text, true or false, and lists or tables of them, as in a recipe"
        raise error("SD-T926", "params hold no settings", where=where, got=str(failure), expect=expect) from None
    return dict(settings)


def check_arguments(component: Component[Any], given: Mapping[str, Any]) -> None:
    """Raise SD-T926 for run-time arguments that are unknown, missing or of the wrong kind, all at once."""
    raise_all(_problems(component, given))


def _problems(component: Component[Any], given: Mapping[str, Any]) -> Iterator[Problem]:
    known = ARGUMENTS.get(component.kind, {})
    where = f"sddit.build({component.kind!r}, {component.name!r})"
    required, optional = _parameters(component, known)
    names = [*required, *(name for name in known if name not in required and name in optional)]
    takes = ", ".join(names) if names else "no arguments besides its settings"
    for name in given:
        if name not in names:
            close = nearest(name, names)
            hint = f"   (did you mean {close!r}?)" if close else ""
            fix = f"put settings into params={{{name!r}: ...}}" if name in component.params.model_fields else ""
            yield Problem("SD-T926", f"unknown argument {name!r}", where, f"{name}=...", takes + hint, fix)
    if missing := [name for name in required if name not in given]:
        expect = "; ".join(f"{name}: {known[name].meaning}" if name in known else name for name in missing)
        yield Problem("SD-T926", f"missing: {', '.join(missing)}", where, ", ".join(given) or "no arguments", expect)
    for name, value in given.items():
        if name in names and name in known and not known[name].fits(value):
            got = f"{value!r:.80} ({type(value).__name__})"
            yield Problem("SD-T926", f"{name!r} is of the wrong kind", where, got, known[name].meaning)


def accepted(component: Component[Any], **arguments: Any) -> dict[str, Any]:
    """Return the run-time arguments that a component takes, of those that later versions added to its kind."""
    required, optional = _parameters(component, arguments)
    return {name: value for name, value in arguments.items() if name in required or name in optional}


def _parameters(component: Component[Any], known: Mapping[str, Any]) -> tuple[list[str], set[str]]:
    """Return the names of the arguments that a factory needs, and of those that it also takes."""
    try:
        _, *parameters = inspect.signature(component.load()).parameters.values()  # without its settings
    except (TypeError, ValueError):
        return [], set(known)
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    optional = {p.name for p in named if p.default is not p.empty} | (set(known) if takes_any else set())
    return [p.name for p in named if p.default is p.empty], optional
