"""sddit: an open-source toolkit for studying self-supervised training of diffusion transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sddit.interfaces import Component, Params
from sddit.plugins.hookspecs import hookimpl
from sddit.plugins.registry import Registry

if TYPE_CHECKING:
    from sddit.api import build, load, observe, sample
    from sddit.backbones import Backbone
    from sddit.losses import LossTerm
    from sddit.training.loaded_model import Model
    from sddit.training.views import context, view

__version__ = "0.1.0"
__numerics__ = "0.1.0"
"""Revision of the numbers: part of every run id in place of the version. Raise it ("2", "3", ...) whenever the bits of
a deterministic run on a CPU change, so that runs of different bits never share an id or an ablation.
"""
_HEAVY = dict.fromkeys(("Model", "build", "load", "observe", "sample"), "sddit.api")
_HEAVY |= dict.fromkeys(("context", "view"), "sddit.training.views")
_HEAVY |= {"Backbone": "sddit.backbones", "LossTerm": "sddit.losses"}
"""{public name: module}, for names that need torch. They are imported on first use."""

__all__ = [
    "Backbone",
    "Component",
    "LossTerm",
    "Model",
    "Params",
    "Registry",
    "build",
    "context",
    "hookimpl",
    "load",
    "observe",
    "sample",
    "view",
]


def __getattr__(name: str) -> Any:
    if module := _HEAVY.get(name):
        return getattr(import_module(module), name)
    raise AttributeError(f"module 'sddit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
