"""Test that every method on two processes has the weights and logs of one process, including prototypes and centers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
STEPS = 10
SMALL = [
    "train.precision=fp64",
    f"train.steps={STEPS}",
    "train.log_every=5",
    "train.batch=16",
    "optimizer.warmup=2",
    "backbone.width=32",
]
HEAD = ["loss.discrimination.prototypes=24", "loss.discrimination.hidden=32", "loss.discrimination.bottleneck=16"]
SPLIT = ["train.micro_batch=8"]
DECODER = ["backbone.depth=2", "backbone.decoder.depth=1", "backbone.decoder.width=32"]

METHODS: dict[str, tuple[str, list[str]]] = {
    "dit": ("digits/dit.toml", [*SPLIT, "backbone.depth=2"]),
    "maskdit": ("digits/maskdit.toml", [*DECODER, *SPLIT]),
    "mdt": ("digits/mdt.toml", [*SPLIT, "backbone.depth=4"]),
    "sprint": ("digits/sprint.toml", [*SPLIT, "pair_sampler.path_drop=0.5"]),
    "internal guidance": (
        "digits/internal-guidance.toml",
        [*SPLIT, "backbone.depth=2", "loss.denoise.target_head=inner"],
    ),
    "sd-dit c3": ("digits/sd-dit-c3.toml", [*DECODER, *HEAD, *SPLIT]),
    "sd-dit": ("quickstart.toml", [*DECODER, *HEAD, *SPLIT, "loss.discrimination.freeze_last=4"]),
    "sd-dit sinkhorn": ("quickstart.toml", [*DECODER, *HEAD, "loss.discrimination.centering=sinkhorn"]),
    "muon": ("digits/muon.toml", [*SPLIT, "backbone.depth=2"]),
    "muon in parts": ("digits/muon.toml", [*SPLIT, "backbone.depth=2", "train.distributed=fsdp"]),
    "sd-dit in parts": ("quickstart.toml", [*DECODER, *HEAD, *SPLIT, "train.distributed=fsdp"]),
    "dispersive": ("digits/dispersive.toml", ["backbone.depth=2"]),
    "repulsor": ("digits/repulsor.toml", [*SPLIT, "backbone.depth=2", "loss.repulsor.queue=40"]),
    "contrastive": ("digits/contrastive.toml", ["backbone.depth=2", "loss.contrastive.partner=other_class"]),
    "diversedit": ("digits/diversedit.toml", [*SPLIT, "backbone.depth=4"]),
}
DEFECTS = {
    "gradients are not averaged": ["dit", "maskdit", "mdt", "sprint", "sd-dit", "sd-dit sinkhorn"],
    "means are of one rank": ["sd-dit", "sd-dit sinkhorn", "dispersive"],
}
ROUNDING = 1e-10  # of weights in float64 after ten steps
LOGGED = 1e-6  # diagnostics are kept in float32


@pytest.fixture(scope="module")
def ran(on_ranks: Callable[..., Any]) -> dict[str, Any]:
    """Return the results of every case on two ranks, and as `alone NAME` on one."""

    def case(name: str, method: str, **more: Any) -> dict[str, Any]:
        recipe, settings = METHODS[method]
        return {"name": name, "recipe": str(RECIPES / recipe), "overrides": SMALL + settings, "steps": STEPS, **more}

    two = [case(name, name) for name in METHODS]
    two += [case(f"{defect}: {name}", name, defect=defect) for defect, names in DEFECTS.items() for name in names]
    return on_ranks(2, two) | on_ranks(1, [case(f"alone {name}", name) for name in METHODS])


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_end_in_the_weights_of_one(
    method: str, ran: dict[str, Any], drift: Callable[..., float], record_property: Callable[[str, object], None]
) -> None:
    found = drift(ran[f"alone {method}"], ran[method])
    record_property("drift", found)
    assert found < ROUNDING


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_log_the_rows_of_one(method: str, ran: dict[str, Any], row_drift: Callable[..., float]) -> None:
    assert row_drift(ran[f"alone {method}"], ran[method]) < LOGGED


@pytest.mark.parametrize(("defect", "method"), [(defect, name) for defect, names in DEFECTS.items() for name in names])
def test_a_defect_is_detected(
    defect: str,
    method: str,
    ran: dict[str, Any],
    drift: Callable[..., float],
    record_property: Callable[[str, object], None],
) -> None:
    found = drift(ran[f"alone {method}"], ran[f"{defect}: {method}"])
    record_property("drift of a spoilt run", found)
    assert found > 1e3 * ROUNDING
