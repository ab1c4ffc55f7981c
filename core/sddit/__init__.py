"""sddit: the open toolkit for training diffusion transformers faster by self-supervision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sddit.hookspecs import hookimpl
from sddit.interfaces import Params
from sddit.registry import Component, Registry

if TYPE_CHECKING:
    from sddit.api import Model, build, load, sample

__version__ = "0.1.0"
__all__ = ["Component", "Model", "Params", "Registry", "build", "hookimpl", "load", "sample"]


def __getattr__(name: str) -> Any:
    """`build`, `load`, `sample` and `Model` need torch, so they are imported when first asked for."""
    if name in {"Model", "build", "load", "sample"}:
        from sddit import api

        return getattr(api, name)
    raise AttributeError(f"module 'sddit' has no attribute {name!r}")
