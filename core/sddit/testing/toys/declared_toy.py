"""Register the data set without images as `sddit/declared`, the name that exported recipes use, for hosts of toys."""

from __future__ import annotations

from sddit import interfaces as face
from sddit.data.declared import DeclaredParams
from sddit.plugins.hookspecs import hookimpl
from sddit.plugins.registry import Registry


@hookimpl
def register_datasets(registry: Registry[face.Dataset]) -> None:
    registry.add(
        "declared",
        "sddit.data.preview:declared",
        params=DeclaredParams,
        summary="Shapes without images, to sample models that were trained elsewhere.",
    )
