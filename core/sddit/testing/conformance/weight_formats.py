"""Check what holds for every layout of published weights that a backbone offers."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from sddit.exchange.layouts import flatten, merge_tables
from sddit.interfaces import Component, Params, Shapes
from sddit.recipes.validation import validated
from sddit.testing.kit import Findings

SCHEDULE = {"sigma_data": 0.5}
"""Settings of a noise schedule, for layouts that state one of them."""


def examine(component: Component[Any], params: Params, shapes: Shapes, backbone: nn.Module, findings: Findings) -> None:
    """Send a network through each layout that has a place for it, and back."""
    for layout, _ in component.formats:
        with findings.trying(f"its weights were written in the layout {layout!r}"):
            examine_layout(layout, component, params, shapes, backbone, findings)


def examine_layout(
    layout: str, component: Component[Any], params: Params, shapes: Shapes, backbone: nn.Module, findings: Findings
) -> None:
    """Arguments and tensors come back as they went, and nothing wrong is inferred from the tensors."""
    form = component.format(layout)
    for attribute in ("files", "note", "idle"):
        findings.expect(hasattr(form, attribute), f"the layout {layout!r} has no {attribute}")
    try:
        config = form.config(params, shapes, SCHEDULE)
    except ValueError:
        return  # no place for this network, which is a good answer
    json.dumps(config, allow_nan=False)
    state = backbone.state_dict()
    theirs = form.to_theirs(state, params, shapes)
    ours = form.to_ours(theirs)
    changed = [name for name, tensor in state.items() if name not in ours or not torch.equal(ours[name], tensor)]
    findings.expect(not changed, f"a tensor does not come back from the layout {layout!r}", got=", ".join(changed[:3]))
    described = form.describe(config)
    findings.expect(
        described.shapes == shapes, f"the layout {layout!r} describes other shapes", got=str(described.shapes)
    )
    again = form.config(validated(component.params, described.backbone, table=""), shapes, SCHEDULE)
    findings.expect(
        again == config, f"the layout {layout!r} describes another network", got=str(again), expect=str(config)
    )
    told, guessed = form.infer(theirs)
    known = flatten(config)
    wrong = {key: value for key, value in flatten(told).items() if known.get(key) != value}
    findings.expect(
        not wrong, f"the tensors of the layout {layout!r} imply wrong arguments", got=str(wrong), expect=str(config)
    )
    unknown = flatten(merge_tables(told, guessed)).keys() - known.keys()
    findings.expect(
        not unknown, f"the layout {layout!r} infers no arguments of its own", got=", ".join(sorted(unknown))
    )
