"""Check what holds for every layout of published weights that a backbone offers."""

from __future__ import annotations

import json

import torch
from torch import nn

from sddit.exchange.layouts import flatten, merge_tables
from sddit.interfaces import Shapes
from sddit.recipes.validation import validated
from sddit.testing.case import Case

SCHEDULE = {"sigma_data": 0.5}
"""Settings of a noise schedule, for layouts that state one of them."""


def examine(case: Case, shapes: Shapes, backbone: nn.Module) -> None:
    """Convert a network to each layout that can hold it, and back."""
    for layout, _ in case.component.formats:
        with case.trying(f"its weights were written in the layout {layout!r}"):
            examine_layout(case, layout, shapes, backbone)


def examine_layout(case: Case, layout: str, shapes: Shapes, backbone: nn.Module) -> None:
    """Check that arguments and tensors come back unchanged, and that nothing wrong is inferred from the tensors."""
    form = case.component.format(layout)
    shown = f"the layout {layout!r}"
    for attribute in ("files", "note", "idle"):
        case.expect(hasattr(form, attribute), f"{shown} has no {attribute}")
    try:
        config = form.config(case.params, shapes, SCHEDULE)
    except ValueError:
        return  # the layout cannot hold this network, which is a valid answer
    json.dumps(config, allow_nan=False)
    state = {name: tensor for name, tensor in backbone.state_dict().items() if not case.params.is_of_head(name)}
    theirs = form.to_theirs(state, case.params, shapes)
    ours = form.to_ours(theirs)
    changed = [name for name, tensor in state.items() if name not in ours or not torch.equal(ours[name], tensor)]
    case.expect(not changed, f"a tensor does not come back from {shown}", got=", ".join(changed[:3]))
    described = form.describe(config)
    case.expect(described.shapes == shapes, f"{shown} describes other shapes", got=described.shapes)
    again = form.config(validated(case.component.params, described.backbone, table=""), shapes, SCHEDULE)
    case.equal(again, config, f"{shown} describes another network")
    implied, guessed = form.infer(theirs)
    known = flatten(config)
    wrong = {key: value for key, value in flatten(implied).items() if known.get(key) != value}
    case.expect(not wrong, f"the tensors of {shown} imply wrong arguments", got=wrong, expect=config)
    unknown = flatten(merge_tables(implied, guessed)).keys() - known.keys()
    got = ", ".join(sorted(unknown))
    case.expect(not unknown, f"{shown} infers arguments that its constructor does not have", got=got)
