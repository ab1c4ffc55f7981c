"""Check what holds for every backbone."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sddit.backbones import Backbone
from sddit.interfaces import Shapes, Tap
from sddit.testing import fixtures as things
from sddit.testing.conformance import weight_formats
from sddit.testing.kit import Case, Findings
from sddit.testing.toys.network import ToyAttention
from sddit.testing.toys.params import ToyAttentionParams

SIZES = (8, 16, 32, 64)
MAX_TOKENS = 256
METHODS = ("truncate", "set_checkpointing", "init_parameter")


@dataclass(slots=True)
class Trial:
    """A backbone and what it is called with."""

    case: Case
    shapes: Shapes
    tokens: int
    taps: tuple[Tap, ...]

    def build(self, dtype: torch.dtype = torch.float64) -> Any:
        """It, every parameter filled."""
        shapes = self.shapes
        with things.default_dtype(dtype), torch.random.fork_rng(devices=[]):
            backbone = self.case.build(
                image=shapes.image,
                num_classes=shapes.num_classes,
                outputs=shapes.outputs,
                attention=ToyAttention(ToyAttentionParams()),
            )
        return things.randomised(backbone) if isinstance(backbone, nn.Module) else backbone

    def visible(self) -> Tensor | None:
        """Half of the tokens, each sample its own; None where nothing can be hidden."""
        if not self.case.params.supports_masking or self.tokens < 2:
            return None
        order = things.numbers(things.BATCH, self.tokens, key=3).argsort(dim=1)
        return order[:, : self.tokens // 2].sort(dim=1).values

    def call(self, backbone: Any, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
        """(raw, heads, taps) of one batch."""
        batch = things.batch(dtype, image=self.shapes.image)
        levels = torch.linspace(-1, 1, things.BATCH, dtype=dtype)
        return backbone(batch.x0, levels, batch.labels, **{"taps": self.taps, **more})


def examine(case: Case, findings: Findings) -> None:
    """Try a backbone full and masked, with its taps, cut, and in each precision."""
    with findings.trying("its params were asked for grid and taps"):
        for outputs in (2, 1):
            trial = trial_of(case, outputs, findings)
            if trial is None:
                return
            with findings.trying("it was built"):
                backbone = trial.build()
                if not is_a_backbone(backbone, findings):
                    return
                with findings.trying("it saw a batch"):
                    examine_outputs(trial, backbone, findings)
                    weight_formats.examine(case.component, case.params, trial.shapes, backbone, findings)
                    if outputs == 1:
                        examine_behaviour(trial, backbone, findings)


def examine_behaviour(trial: Trial, backbone: Any, findings: Findings) -> None:
    """Check everything that does not depend on the number of outputs."""
    examine_repeats(trial, backbone, findings)
    examine_masks(trial, backbone, findings)
    with findings.trying("a gradient was taken"):
        examine_gradient(trial, backbone, findings)
        examine_checkpointing(trial, backbone, findings)
    with findings.trying("it was cut after a tap"):
        examine_cut(trial, backbone, findings)
    with findings.trying("it computed in bf16"):
        examine_precision(trial, findings)
    with findings.trying("its cost was counted"):
        examine_cost(trial, backbone, findings)


def trial_of(case: Case, outputs: int, findings: Findings) -> Trial | None:
    """Return the smallest images that its patches fit, and the taps it has."""
    for size in SIZES:
        shapes = things.shapes(outputs, (2, size, size))
        rows, columns = case.params.grid(shapes)
        if 4 <= rows * columns <= MAX_TOKENS and size % rows == 0 and size % columns == 0:
            return Trial(case, shapes, rows * columns, taps_of(case, findings))
    findings.add(
        f"no image of {SIZES} pixels has between 4 and {MAX_TOKENS} tokens",
        fix="check(..., patch=...) with a smaller patch",
    )
    return None


def taps_of(case: Case, findings: Findings) -> tuple[Tap, ...]:
    """`encoder`, and those of the others that exist."""
    found: list[Tap] = []
    for tap in ("encoder", "decoder", 1, 0.5):
        try:
            case.params.width(tap)
        except ValueError:
            findings.expect(tap != "encoder", "it has no tap 'encoder'")
            continue
        found.append(tap)
    try:
        case.params.width("no such tap")
    except ValueError:
        return tuple(found)
    findings.add("width() accepts a tap that does not exist", fix="raise ValueError, and name the taps there are")
    return tuple(found)


def is_a_backbone(backbone: Any, findings: Findings) -> bool:
    """Return a module with its blocks in order and the methods that the core calls."""
    if not findings.expect(isinstance(backbone, nn.Module), "it is not a torch.nn.Module", got=type(backbone).__name__):
        return False
    findings.expect(
        isinstance(backbone, Backbone),
        "it is not a subclass of sddit.Backbone",
        got=type(backbone).__name__,
        fix="derive the class from sddit.Backbone",
    )
    blocks = getattr(backbone, "blocks", None)
    findings.expect(
        isinstance(blocks, nn.ModuleList) and len(blocks) > 0,
        "`blocks` is not a ModuleList of blocks",
        got=type(blocks).__name__,
    )
    missing = [name for name in METHODS if not callable(getattr(backbone, name, None))]
    return findings.expect(not missing, f"it lacks {', '.join(missing)}", fix="sddit.Backbone documents them")


def examine_outputs(trial: Trial, backbone: Any, findings: Findings) -> None:
    """Shapes of the output and of every tap, with and without output, full and masked."""
    channels, height, width = trial.shapes.image
    image = (things.BATCH, trial.shapes.outputs * channels, height, width)
    for visible in (None, trial.visible()):
        with things.no_global_randomness(findings, "forward"):
            raw, heads, taps = trial.call(backbone, visible=visible)
        things.is_shaped(findings, raw, image, "its output")
        findings.expect(isinstance(heads, dict), "its heads are not a dict", got=type(heads).__name__)
        alone, _, same = trial.call(backbone, visible=visible, output=False)
        findings.expect(alone is None, "it gives an output with output=False")
        if not findings.expect(
            set(taps) == set(trial.taps),
            "it gives other taps than asked for",
            got=str(list(taps)),
            expect=str(trial.taps),
        ):
            return
        for tap in trial.taps:
            examine_tap(trial, tap, taps[tap], visible, findings)
            equal = tap in same and torch.allclose(same[tap].patch, taps[tap].patch)
            findings.expect(equal, f"tap {tap!r} differs with output=False")


def examine_tap(trial: Trial, tap: Tap, tokens: Any, visible: Tensor | None, findings: Findings) -> None:
    """Check one tap: the visible tokens, or all, and the class token next to them."""
    width = trial.case.params.width(tap)
    if tokens.index is None:
        count = trial.tokens
    else:
        findings.expect(
            visible is not None and torch.equal(tokens.index, visible),
            f"tap {tap!r} has an index that is not `visible`",
        )
        count = tokens.index.shape[1]
    things.is_shaped(
        findings, tokens.patch, (things.BATCH, count, width), f"patch tokens at tap {tap!r}", "width() says what D is"
    )
    has_cls = trial.case.params.has_cls
    if tokens.cls is not None:
        findings.expect(has_cls, f"tap {tap!r} has a class token, though has_cls says not")
        things.is_shaped(findings, tokens.cls, (things.BATCH, width), f"class token at tap {tap!r}")
    elif tap == "encoder":  # a decoder may have let go of it
        findings.expect(not has_cls, f"tap {tap!r} has no class token, though has_cls says so")


def examine_repeats(trial: Trial, backbone: Any, findings: Findings) -> None:
    """Check that outputs repeat, that images are independent, and that every input matters."""
    raw = trial.call(backbone)[0]
    findings.expect(torch.equal(raw, trial.call(backbone)[0]), "it gives another output for the same input")
    findings.expect(
        torch.equal(raw, trial.call(copy.deepcopy(backbone).eval())[0]),
        "training and evaluation mode differ",
        fix="no dropout by default",
    )
    batch, levels = (
        things.batch(torch.float64, image=trial.shapes.image),
        torch.linspace(-1, 1, things.BATCH, dtype=torch.float64),
    )
    part = backbone(batch.x0[2:4], levels[2:4], batch.labels[2:4])[0]
    findings.expect(torch.allclose(part, raw[2:4], rtol=1e-9), "an image depends on the other images of the batch")
    findings.expect(not torch.equal(raw, backbone(batch.x0, levels.flip(0), batch.labels)[0]), "c_noise has no effect")
    findings.expect(not torch.equal(raw, backbone(batch.x0, levels, batch.labels.flip(0))[0]), "labels have no effect")


def examine_masks(trial: Trial, backbone: Any, findings: Findings) -> None:
    """With nothing hidden, the masked forward is the full one."""
    if trial.case.params.supports_masking:
        everything = torch.arange(trial.tokens).expand(things.BATCH, -1)
        full, masked = trial.call(backbone)[0], trial.call(backbone, visible=everything)[0]
        findings.expect(
            torch.allclose(full, masked, rtol=1e-9), "with every token visible it differs from the full forward"
        )
        hidden = trial.call(backbone, visible=trial.visible())[0]
        findings.expect(not torch.allclose(full, hidden), "hiding half of the tokens changes nothing")


def examine_gradient(trial: Trial, backbone: Any, findings: Findings) -> None:
    """Check that a full and a masked pass together reach every parameter."""
    backbone.zero_grad(set_to_none=True)
    for visible in (None, trial.visible()):
        torch.autograd.backward(everything(trial.call(backbone, visible=visible)))
    idle = [
        name for name, parameter in backbone.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    findings.expect(
        not idle, f"parameters without a gradient: {', '.join(idle)}", fix="use them, or requires_grad_(False)"
    )


def everything(outputs: Any) -> Tensor:
    """Return one number that depends on all that a forward gives."""
    raw, heads, taps = outputs
    parts = [raw, *heads.values(), *(tokens.patch for tokens in taps.values())]
    parts += [tokens.cls for tokens in taps.values() if tokens.cls is not None]
    return torch.stack([(part * things.numbers(*part.shape, key=8, dtype=part.dtype)).sum() for part in parts]).sum()


def examine_checkpointing(trial: Trial, backbone: Any, findings: Findings) -> None:
    """Recomputing blocks changes no gradient."""
    gradients = []
    for on in (False, True):
        trained = copy.deepcopy(backbone).train()
        trained.zero_grad(set_to_none=True)
        trained.set_checkpointing(on)
        torch.autograd.backward(everything(trial.call(trained)))
        gradients.append({name: p.grad for name, p in trained.named_parameters() if p.grad is not None})
    same = all(torch.allclose(gradients[0][name], gradients[1][name], rtol=1e-9) for name in gradients[0])
    findings.expect(same, "activation checkpointing changes the gradient")


def examine_cut(trial: Trial, backbone: Any, findings: Findings) -> None:
    """Cut after the encoder it still gives that tap, and weighs no more."""
    cut = copy.deepcopy(backbone)
    cut.truncate(("encoder",))
    whole = trial.call(backbone, taps=("encoder",), output=False)[2]["encoder"]
    part = trial.call(cut, taps=("encoder",), output=False)[2]["encoder"]
    findings.expect(torch.equal(whole.patch, part.patch), "truncate changes the tap it keeps")
    smaller = count(cut) < count(backbone)
    findings.expect(
        smaller,
        "truncate drops nothing",
        got=f"{count(cut)} of {count(backbone)} parameters",
        fix="a teacher needs no output layer",
    )


def examine_precision(trial: Trial, findings: Findings) -> None:
    """Finite under bf16 autocast, and near float32."""
    backbone = trial.build(torch.float32)
    full = trial.call(backbone, torch.float32)[0]
    with torch.autocast("cpu", torch.bfloat16):
        low = trial.call(backbone, torch.float32)[0].float()
    error = ((low - full).norm() / full.norm()).item()
    findings.expect(
        error < 0.1, "under bf16 autocast the output is far off", got=f"{error:.2g} relative", expect="below 0.1"
    )


def examine_cost(trial: Trial, backbone: Any, findings: Findings) -> None:
    """Parameters and FLOPs as stated, within 1 %, counted with the softmax written out."""
    params, shapes = trial.case.params, trial.shapes
    for visible in (None, trial.visible()):
        kept = trial.tokens if visible is None else visible.shape[1]
        cost = params.cost(shapes, num_kept=kept)
        if cost is None:
            return
        near(cost.parameters, count(backbone), "parameters", findings)
        with FlopCounterMode(display=False) as counter:
            trial.call(backbone, taps=(), visible=visible)
        near(cost.flops, counter.get_total_flops() / things.BATCH, f"FLOPs of {kept} visible tokens", findings)


def near(stated: float, counted: float, what: str, findings: Findings) -> None:
    close = math.isclose(stated, counted, rel_tol=0.01)
    findings.expect(close, f"cost() states wrong {what}", got=f"{stated:,.0f}", expect=f"{counted:,.0f} within 1 %")


def count(module: nn.Module) -> int:
    """Return its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
