"""Check what holds for every backbone."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sddit.backbones import Backbone
from sddit.interfaces import Matrix, Shapes, Tap
from sddit.testing import fixtures
from sddit.testing.case import Case
from sddit.testing.conformance import weight_formats
from sddit.training.loss_checks import unregistered_layers
from sddit.training.parameter_roles import roles_of

SIZES = (8, 16, 32, 64)
MAX_TOKENS = 256
METHODS = ("truncate", "set_checkpointing", "init_parameter")


@dataclass(slots=True)
class Trial:
    """A backbone and the arguments of its calls."""

    case: Case
    shapes: Shapes
    taps: tuple[Tap, ...]
    tokens: int
    backbone: Any = None

    def build(self, dtype: torch.dtype = torch.float64) -> Any:
        """Return the backbone with every parameter filled."""
        with torch.random.fork_rng(devices=[]):
            backbone = fixtures.backbone_of(self.case.build, self.shapes, dtype)
        return fixtures.randomised(backbone) if isinstance(backbone, nn.Module) else backbone

    @property
    def visible(self) -> Tensor | None:
        """Half of the tokens; None if nothing can be hidden."""
        can_hide = self.case.params.supports_masking and self.tokens > 1
        return fixtures.visible(self.tokens, self.tokens // 2) if can_hide else None

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """Return noisy images, noise levels and labels."""
        batch = fixtures.batch(dtype, image=self.shapes.image)
        return batch.x0, torch.linspace(-1, 1, fixtures.BATCH, dtype=dtype), batch.labels

    def call(self, backbone: Any = None, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
        """Return (raw, heads, taps) of a batch, by default of the trial's own backbone."""
        network = self.backbone if backbone is None else backbone
        return network(*self.inputs(dtype), **{"taps": self.taps, **more})


def examine(case: Case) -> None:
    """Check a backbone with and without mask, its taps, truncation, precisions and cost."""
    with case.trying("its params were asked for grid and taps"):
        for size in SIZES:
            image = (2, size, size)
            rows, columns = case.params.grid(fixtures.shapes(image=image))
            if 4 <= rows * columns <= MAX_TOKENS and size % rows == 0 and size % columns == 0:
                break
        else:
            what = f"no image of {SIZES} pixels has between 4 and {MAX_TOKENS} tokens"
            case.add(what, fix="check(..., patch=...) with a smaller patch")
            return
        taps = taps_of(case)
        for outputs in (2, 1):
            trial = Trial(case, fixtures.shapes(outputs, image), taps, rows * columns)
            with case.trying("it was built"):
                trial.backbone = trial.build()
                if not is_backbone(case, trial.backbone):
                    return
                with case.trying("it saw a batch"):
                    examine_outputs(case, trial)
                    weight_formats.examine(case, trial.shapes, trial.backbone)
                    if outputs == 1:
                        examine_behaviour(case, trial)


def examine_behaviour(case: Case, trial: Trial) -> None:
    """Check everything that does not depend on the number of outputs."""
    examine_repeats(case, trial)
    examine_masks(case, trial)
    examine_dense_path(case, trial)
    with case.trying("a gradient was taken"):
        examine_gradient(case, trial)
        examine_checkpointing(case, trial)
    with case.trying("it was truncated after a tap"):
        examine_truncation(case, trial)
    with case.trying("it computed in bf16"):
        examine_precision(case, trial)
    with case.trying("its cost was counted"):
        examine_cost(case, trial)
    with case.trying("it stated the roles of its parameters"):
        examine_roles(case, trial)


def taps_of(case: Case) -> tuple[Tap, ...]:
    """Return `encoder` and the other taps that exist. `width` raises ValueError for those that do not."""
    found: list[Tap] = []
    for tap in ("encoder", "decoder", 1, 0.5, "no such tap"):
        try:
            case.params.width(tap)
        except ValueError:
            case.expect(tap != "encoder", "it has no tap 'encoder'")
        else:
            found.append(tap)
    if "no such tap" in found:
        case.add("width() accepts a tap that does not exist", fix="raise ValueError, and name the taps there are")
        found.remove("no such tap")
    return tuple(found)


def is_backbone(case: Case, backbone: Any) -> bool:
    """Return whether it is a module with its blocks in order and the methods that the core calls."""
    if not case.instance(backbone, nn.Module, "it is not a torch.nn.Module"):
        return False
    fix = "derive the class from sddit.Backbone"
    case.instance(backbone, Backbone, "it is not a subclass of sddit.Backbone", fix)
    hidden = unregistered_layers(backbone)
    what = f"layers in a list or dict of Python: {', '.join(hidden)}"
    case.expect(not hidden, what, fix="use nn.ModuleList or nn.ModuleDict: layers in a list are not trained")
    blocks = getattr(backbone, "blocks", None)
    has_blocks = isinstance(blocks, nn.ModuleList) and len(blocks) > 0
    case.expect(has_blocks, "`blocks` is not a ModuleList of blocks", got=type(blocks).__name__)
    missing = [name for name in METHODS if not callable(getattr(backbone, name, None))]
    return case.expect(not missing, f"it lacks {', '.join(missing)}", fix="sddit.Backbone documents them")


def examine_outputs(case: Case, trial: Trial) -> None:
    """Check the shapes of the output and of every tap, with and without output, full and masked."""
    channels, height, width = trial.shapes.image
    image = (fixtures.BATCH, trial.shapes.outputs * channels, height, width)
    for visible in (None, trial.visible):
        with case.no_global_randomness("forward"):
            raw, heads, taps = trial.call(visible=visible)
        case.shaped(raw, image, "its output")
        case.instance(heads, dict, "its heads are not a dict")
        alone, _, same = trial.call(visible=visible, output=False)
        case.expect(alone is None, "it gives an output with output=False")
        what = "it gives other taps than asked for"
        if not case.expect(set(taps) == set(trial.taps), what, got=list(taps), expect=trial.taps):
            return
        for tap in trial.taps:
            examine_tap(case, trial, tap, taps[tap], visible)
            equal = tap in same and torch.allclose(same[tap].patch, taps[tap].patch)
            case.expect(equal, f"tap {tap!r} differs with output=False")


def examine_tap(case: Case, trial: Trial, tap: Tap, tokens: Any, visible: Tensor | None) -> None:
    """Check one tap: the tokens that are visible, or all, and the class token."""
    width, has_cls = case.params.width(tap), case.params.has_cls
    count = trial.tokens
    if tokens.index is not None:
        same = visible is not None and torch.equal(tokens.index, visible)
        case.expect(same, f"tap {tap!r} has an index that is not `visible`")
        count = tokens.index.shape[1]
    patch = (fixtures.BATCH, count, width)
    case.shaped(tokens.patch, patch, f"patch tokens at tap {tap!r}", "width() says what D is")
    if tokens.cls is not None:
        case.expect(has_cls, f"tap {tap!r} has a class token, though has_cls is False")
        case.shaped(tokens.cls, (fixtures.BATCH, width), f"class token at tap {tap!r}")
    elif tap == "encoder":  # a decoder may have dropped it
        case.expect(not has_cls, f"tap {tap!r} has no class token, though has_cls is True")


def examine_repeats(case: Case, trial: Trial) -> None:
    """Check that outputs repeat, that images are independent, and that every input matters."""
    raw = trial.call()[0]
    case.expect(torch.equal(raw, trial.call()[0]), "it gives another output for the same input")
    same = torch.equal(raw, trial.call(copy.deepcopy(trial.backbone).eval())[0])
    case.expect(same, "training and evaluation mode differ", fix="no dropout by default")
    x, levels, labels = trial.inputs()
    given = {"x": x, "c_noise": levels, "labels": labels}
    with case.unchanged(lambda: given, "forward changed what it was given", "work on a copy"):
        trial.backbone(x, levels, labels)
    x, levels, labels = trial.inputs()
    part = trial.backbone(x[2:4], levels[2:4], labels[2:4])[0]
    case.expect(torch.allclose(part, raw[2:4], rtol=1e-9), "an image depends on the other images of the batch")
    case.expect(not torch.equal(raw, trial.backbone(x, levels.flip(0), labels)[0]), "c_noise has no effect")
    case.expect(not torch.equal(raw, trial.backbone(x, levels, labels.flip(0))[0]), "labels have no effect")


def examine_masks(case: Case, trial: Trial) -> None:
    """Check that the masked forward pass is the full one if nothing is hidden, and only then."""
    if case.params.supports_masking:
        everything = torch.arange(trial.tokens).expand(fixtures.BATCH, -1)
        full, masked = trial.call()[0], trial.call(visible=everything)[0]
        same = torch.allclose(full, masked, rtol=1e-9)
        case.expect(same, "with every token visible it differs from the full forward")
        hidden = trial.call(visible=trial.visible)[0]
        case.expect(not torch.allclose(full, hidden), "hiding half of the tokens changes nothing")


def examine_dense_path(case: Case, trial: Trial) -> None:
    """Check that samples on the dense path get its output, and the others in their batch that of the full network."""
    if not case.params.supports_dense_path:
        return
    for visible in (None, trial.visible):
        some = torch.arange(fixtures.BATCH) % 2 == 0
        full, dense = (trial.call(visible=visible, taps=(), dense_path=on)[0] for on in (False, True))
        mixed = trial.call(visible=visible, taps=(), dense_path=some)[0]
        same = torch.allclose(mixed, torch.where(some[:, None, None, None], dense, full), rtol=1e-9)
        case.expect(same, "with dense_path for some samples, each differs from a batch of its kind")
        case.expect(not torch.allclose(full, dense), "the dense path gives the output of the full network")


def examine_gradient(case: Case, trial: Trial) -> None:
    """Check that a full and a masked pass together reach every parameter."""
    trial.backbone.zero_grad(set_to_none=True)
    for visible in (None, trial.visible):
        torch.autograd.backward(weighted_sum(trial.call(visible=visible)))
    idle = [name for name, p in trial.backbone.named_parameters() if p.requires_grad and p.grad is None]
    what = f"parameters without a gradient: {', '.join(idle)}"
    case.expect(not idle, what, fix="use them, or requires_grad_(False)")


def weighted_sum(outputs: Any) -> Tensor:
    """Return one number that depends on everything that a forward pass returns."""
    raw, heads, taps = outputs
    parts = [raw, *heads.values(), *(tokens.patch for tokens in taps.values())]
    parts += [tokens.cls for tokens in taps.values() if tokens.cls is not None]
    return torch.stack([(part * fixtures.numbers(*part.shape, key=8, dtype=part.dtype)).sum() for part in parts]).sum()


def examine_checkpointing(case: Case, trial: Trial) -> None:
    """Check that recomputing blocks changes no gradient."""
    gradients = []
    for on in (False, True):
        trained = copy.deepcopy(trial.backbone).train()
        trained.zero_grad(set_to_none=True)
        trained.set_checkpointing(on)
        torch.autograd.backward(weighted_sum(trial.call(trained)))
        gradients.append({name: p.grad for name, p in trained.named_parameters() if p.grad is not None})
    same = all(torch.allclose(gradients[0][name], gradients[1][name], rtol=1e-9) for name in gradients[0])
    case.expect(same, "activation checkpointing changes the gradient")


def examine_truncation(case: Case, trial: Trial) -> None:
    """Check that a network truncated after the encoder has the same tap and fewer parameters."""
    short = copy.deepcopy(trial.backbone)
    short.truncate(("encoder",))
    whole = trial.call(taps=("encoder",), output=False)[2]["encoder"].patch
    part = trial.call(short, taps=("encoder",), output=False)[2]["encoder"].patch
    case.expect(torch.equal(whole, part), "truncate changes the tap it keeps")
    kept, total = num_parameters(short), num_parameters(trial.backbone)
    fix = "a teacher needs no output layer"
    case.expect(kept < total, "truncate drops nothing", got=f"{kept} of {total} parameters", fix=fix)


def examine_precision(case: Case, trial: Trial) -> None:
    """Check that the output under bf16 autocast is close to that in float32."""
    backbone = trial.build(torch.float32)
    full = trial.call(backbone, torch.float32)[0]
    with torch.autocast("cpu", torch.bfloat16):
        low = trial.call(backbone, torch.float32)[0].float()
    error = ((low - full).norm() / full.norm()).item()
    what = "under bf16 autocast the output is far off"
    case.expect(error < 0.1, what, got=f"{error:.2g} relative", expect="below 0.1")


def examine_cost(case: Case, trial: Trial) -> None:
    """Check the stated parameters and FLOPs, counted with the softmax written out, within 1 %."""
    passes: list[tuple[int, dict[str, Any]]] = [(trial.tokens, {})]
    if (visible := trial.visible) is not None:
        passes.append((visible.shape[1], {"visible": visible}))
    if case.params.supports_dense_path:
        passes.append((0, {"dense_path": True}))
    for kept, inputs in passes:
        cost = case.params.cost(trial.shapes, num_kept=kept)
        if cost is None:
            return
        with FlopCounterMode(display=False) as counter:
            trial.call(taps=(), **inputs)
        flops = counter.get_total_flops() / fixtures.BATCH
        for stated, counted, what in (
            (cost.parameters, num_parameters(trial.backbone), "parameters"),
            (cost.flops, flops, f"FLOPs of {kept} visible tokens"),
        ):
            close = math.isclose(stated, counted, rel_tol=0.01)
            expect = f"{counted:,.0f} within 1 %"
            case.expect(close, f"cost() states wrong {what}", got=f"{stated:,.0f}", expect=expect)


def examine_roles(case: Case, trial: Trial) -> None:
    """Check that roles are possible, and that the matrices that cost() states, if any, are those of that role."""
    roles = roles_of(trial.backbone, "backbone").items()
    found = Counter(Matrix(len(p), p.shape[1], role.stacked) for p, role in roles if role.role == "matrix")
    cost = case.params.cost(trial.shapes, num_kept=trial.tokens)
    if cost is not None and cost.matrices:
        what, expect = "cost() states other matrices than parameter_role", f"{sum(found.values())} of role matrix"
        case.expect(Counter(cost.matrices) == found, what, got=f"{len(cost.matrices)} matrices", expect=expect)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
