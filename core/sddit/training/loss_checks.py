"""Rules that hold for every loss. The conformance kit checks them on tiny tensors, the first step on real samples."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from sddit.diffusion.draws import KeyedDraws
from sddit.interfaces import Context, Cost, LossParams, Outputs, Tokens, View
from sddit.training.findings import Findings
from sddit.training.nonfinite_origin import NonFiniteOrigin
from sddit.training.student import tensors_of_view

TILES = 16  # how often the samples are repeated where they are spread over noise levels and classes
TOLERANCE = {torch.float64: 1e-10}  # of a value that other samples must not change, relative to the largest
LOOSE = 1e-3  # in float32: matrix products of another batch size round differently
COUPLED = "the value of one sample depends on other samples"
DECLARE_COUPLED = "declare couples_samples and return a scalar"


class Scene:
    """Views, and outputs whose tensors are leaves of the graph: what a loss reads, and where its gradient arrives."""

    def __init__(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> None:
        self.ctx, self.views = ctx, dict(views)
        self.leaves: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}
        self.outputs = {name: self._as_leaves(name, outputs[name]) for name in views if name in outputs}

    def _as_leaves(self, name: str, outputs: Outputs) -> Outputs:
        """Return the outputs for a view with every tensor replaced by a leaf, and each x0 computed from its leaf."""
        view = self.views[name]
        leaves = self.leaves[view.network]

        def leaf(what: str, value: Tensor) -> Tensor:
            leaves[f"{name}.{what}"] = value.detach().clone().requires_grad_()
            return leaves[f"{name}.{what}"]

        scalings = self.ctx.schedule.scalings(view.t.double())
        c_skip, c_out = (c.to(view.x)[:, None, None, None] for c in (scalings.c_skip, scalings.c_out))
        found = Outputs()
        if outputs.raw is not None:
            found.raw = leaf("raw", outputs.raw)
            found.x0 = c_skip * view.x + c_out * found.raw
        if outputs.extra is not None:
            found.extra = leaf("extra", outputs.extra)
        for head, (raw, _) in outputs.heads.items():
            own = leaf(f"heads[{head!r}]", raw)
            found.heads[head] = own, c_skip * view.x + c_out * own
        for tap, tokens in outputs.taps.items():
            cls = None if tokens.cls is None else leaf(f"taps[{tap!r}].cls", tokens.cls)
            found.taps[tap] = Tokens(leaf(f"taps[{tap!r}].patch", tokens.patch), tokens.index, cls)
        return found

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(next(iter(self.views.values())).x)

    @property
    def masked(self) -> bool:
        return any(view.visible is not None for view in self.views.values())

    @property
    def shown(self) -> str:
        """What the loss sees, in words."""
        return "a masked view" if self.masked else "a full view"

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.views.values())).x.dtype

    def value_of(self, term: nn.Module, **changes: Any) -> Any:
        """Return the value of a loss, in a context with `changes`."""
        return term(dataclasses.replace(self.ctx, **changes), self.views, self.outputs)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that a loss must not change."""
        found = dict(self.leaves["student"]) | self.leaves["teacher"]
        for name, view in self.views.items():
            found |= {f"{name}.{key}": value for key, value in tensors_of_view(view).items()}
            out = self.outputs.get(name, Outputs())
            estimates = {"x0": out.x0} | {f"heads[{head!r}] x0": x0 for head, (_, x0) in out.heads.items()}
            found |= {f"the outputs' {name}.{k}": v for k, v in estimates.items() if v is not None}
        return found

    def is_finite(self) -> bool:
        """Return whether all that the loss reads is finite."""
        return all(bool(t.isfinite().all()) for t in self.tensors().values() if t.is_floating_point())

    def select(self, rows: Tensor) -> Scene:
        """Return the scene of some of the samples, which may repeat."""
        views, outputs = rows_of((self.views, self.outputs), rows, {})
        draws = self.ctx.draws
        if isinstance(draws, KeyedDraws):
            draws = draws.select(rows)
        return Scene(dataclasses.replace(self.ctx, draws=draws), views, outputs)

    def perturbed(self, scale: float) -> Scene:
        """Return the scene with noise added to all outputs."""
        scene = self.select(torch.arange(self.size, device=next(iter(self.views.values())).x.device))
        with torch.no_grad():
            for group in scene.leaves.values():
                disturb(group.values(), scale)
        return Scene(scene.ctx, scene.views, scene.outputs)  # whose x0 follow from the noisy leaves

    def spread(self) -> Scene:
        """Return the samples repeated over noise levels and classes, in the middle of the run."""
        device = next(iter(self.views.values())).x.device
        scene = self.select(torch.arange(self.size, device=device).repeat(TILES))
        u = (torch.arange(scene.size, dtype=torch.float64, device=device) + 0.5) / scene.size
        labels = torch.arange(scene.size, device=device) % (self.ctx.num_classes + 1)
        schedule, views = self.ctx.schedule, {}
        for name, view in scene.views.items():
            t = schedule.t_from_uniform(u).to(view.t.dtype)
            x = schedule.perturb(view.x0, view.noise, t)
            views[name] = dataclasses.replace(view, x=x, t=t, labels=labels)
        ctx = dataclasses.replace(scene.ctx, step=self.ctx.total_steps // 2)
        return Scene(ctx, views, scene.outputs)


def rows_of(value: Any, rows: Tensor, known: dict[int, Tensor]) -> Any:
    """Return some samples of all tensors in views and outputs; what was one tensor (`known`, by id) stays one."""
    if isinstance(value, Tensor):
        return known.setdefault(id(value), value.detach()[rows])
    if isinstance(value, dict):
        return {key: rows_of(entry, rows, known) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(rows_of(entry, rows, known) for entry in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: rows_of(getattr(value, field.name), rows, known) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


@torch.no_grad()
def disturb(tensors: Iterable[Tensor], scale: float) -> None:
    """Add noise to tensors in place, relative to their standard deviation, and a little where that is 0."""
    for key, tensor in enumerate(tensors):
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)
            size = tensor.double().std(correction=0) + 0.1
            tensor += (scale * size * noise.to(tensor.device)).to(tensor.dtype)


def check_value(findings: Findings, term: nn.Module, params: LossParams, scene: Scene) -> bool:
    """Check what forward returns, that it can be repeated, and that nothing is changed. Uses up `term`."""
    shape: tuple[int, ...] = (scene.size,)
    fix = "mean over every dimension but the first; a scalar needs couples_samples"
    if params.couples_samples:
        shape, fix = (), "return a scalar, or drop couples_samples"
    if hidden := unregistered_layers(term):
        fix = "use nn.ModuleList, nn.ModuleDict or nn.ParameterList: layers in a list are not trained"
        findings.add(f"layers in a list or dict of Python: {', '.join(hidden)}", fix=fix)
        return False
    known = len(findings.problems)
    unchanged = findings.unchanged(scene.tensors, "forward changed what it was given", "work on a copy")
    stage = "stage statistics in forward, and change buffers in after_step"
    buffers = findings.unchanged(lambda: dict(term.named_buffers()), "a buffer changed in forward", stage)
    weights = findings.unchanged(lambda: dict(term.named_parameters()), "a weight changed in forward", stage)
    held = {name for name, _ in term.named_parameters()}
    with findings.no_global_randomness("forward"), unchanged, buffers, weights:
        value, first = scene.value_of(term), attributes(term)
        if late := [name for name, _ in term.named_parameters() if name not in held]:
            fix = "create layers in __init__: the optimizer does not train one that is created later"
            findings.add(f"forward created {', '.join(late)}", fix=fix)
            return False
        again, second = scene.value_of(term), attributes(term)
    what = f"what forward returns for {scene.shown}"
    if not isinstance(value, Tensor):
        got, fix = type(value).__name__, "end forward with  return loss"
        if isinstance(value, (float, int)):
            fix = "return the tensor itself, without float() or .item()"
        findings.add("forward did not return a tensor", got=got, expect=f"a tensor of shape {shape}", fix=fix)
        return False
    if not findings.of_shape(value, shape, what, fix):
        return False
    wrong = "complex numbers" if value.is_complex() else "integers"
    if not findings.expect(value.is_floating_point(), f"forward returns {wrong}", got=value, fix="return a float"):
        return False
    if any(leaf.grad is not None for leaf in scene.leaves["student"].values()):
        fix = "return the loss without backward(): the training step calls it, with the weight of the loss"
        findings.add("forward adds to the gradients of the network itself", fix=fix)
        return False
    if not check_finite(findings, term, scene, value, what):
        return False
    if len(findings.problems) == known and not equal_values(value, again):
        changed = [f"self.{name}: {first.get(name)} -> {now}" for name, now in second.items() if first.get(name) != now]
        fix = "draw from ctx.draws; keep state in buffers, and change them in after_step"
        if changed:
            fix = "keep it in a buffer (register_buffer), and change it in after_step"
        findings.add("forward gives another value for the same input", got="; ".join(changed), fix=fix)
    return len(findings.problems) == known


def check_finite(findings: Findings, term: nn.Module, scene: Scene, value: Tensor, what: str) -> bool:
    """Note a value that is not finite, with the line that made it of finite numbers."""
    if bool(value.isfinite().all()):
        return True
    with suppress(Exception), NonFiniteOrigin(findings.code) as origin:
        scene.value_of(term)
    made = f", first made by {origin.operation}" if origin.operation else ""
    fix = "the loss makes it of finite numbers: clamp what goes into log, sqrt, exp and division, x.clamp(min=1e-6)"
    return findings.finite(value, what, where=origin.line, fix=fix, expect=f"finite, as its inputs are{made}")


def equal_values(a: Any, b: Any) -> bool:
    """Return whether two values are equal: in all bits on a CPU, up to the order of sums on a GPU."""
    if not isinstance(b, Tensor) or a.shape != b.shape:
        return False
    return torch.equal(a, b) if a.device.type == "cpu" else is_near(a, b, 1e-5)


def is_near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Return whether two tensors agree, relative to the largest number; rounding of zeros counts as agreement."""
    if not b.is_floating_point():
        return torch.equal(a, b)
    smallest = 1e-7 if tolerance >= LOOSE else 1e-14
    return a.numel() == 0 or bool((a - b).abs().max() <= tolerance * b.abs().max() + smallest)


def attributes(term: nn.Module) -> dict[str, str]:
    """Return the attributes of a loss that are neither parameters nor buffers, in words that change with them."""
    torch_own = {*vars(nn.Module()), "_logged"}
    return {
        f"{prefix}.{name}".lstrip("."): words(value)
        for prefix, module in term.named_modules()
        for name, value in {**own_class_values(module), **vars(module)}.items()
        if name not in torch_own
    }


def own_class_values(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module's class, without those of torch's classes and without methods."""
    values = {} if type(module).__module__.startswith("torch.") else vars(type(module))
    return {name: value for name, value in values.items() if not (name.startswith("__") or callable(value))}


def unregistered_layers(module: nn.Module) -> list[str]:
    """Return the lists, tuples and dicts of a module that hold layers, which torch neither moves, saves nor trains."""
    found = []
    for prefix, part in module.named_modules():
        own = {} if type(part).__module__.startswith("torch.") else vars(part)
        for name, value in own.items():
            entries = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
            if not name.startswith("_") and any(isinstance(entry, (nn.Module, nn.Parameter)) for entry in entries):
                found.append(f"{prefix}.{name}".lstrip("."))
    return found


def words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of sum {float(value.detach().double().sum()):.6g}"
    if isinstance(value, (int, float, str, bool, type(None))):
        return repr(value)
    return f"{len(value)} items" if hasattr(value, "__len__") else type(value).__name__


def check_gradient(findings: Findings, term: nn.Module, params: LossParams, scene: Scene) -> bool:
    """Check that the gradient reaches the student's outputs, and is finite."""
    value = scene.value_of(copy.deepcopy(term))
    got = "a value detached from the student's outputs"
    fix = "look for .detach(), .item(), torch.no_grad(), or a use of labels alone"
    if not findings.expect(value.requires_grad, "the loss has no gradient", got=got, fix=fix):
        return False
    student = scene.leaves["student"]
    if not student or not params.trains_network:
        return True
    gradients = gradients_of(value, student.values())
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        fix = (
            "sqrt, norm and division have an infinite slope at 0: add a small number, (x.square().sum() + 1e-12).sqrt()"
        )
        findings.add("the gradient of the loss is not finite", got="NaN or infinite numbers at finite inputs", fix=fix)
        return False
    if any(bool(gradient.any()) for gradient in gradients) or any(variants_reach(term, scene)):
        return True
    own = [name for name, parameter in term.named_parameters() if parameter.requires_grad]
    fix = "look for .detach(), .data, .item() or torch.no_grad() on the tokens or outputs that it compares"
    if own:
        fix += "; a probe that trains only its own layers sets trains_network"
    findings.add(
        "the loss has no gradient to the student's outputs",
        got=f"a gradient only to its own {', '.join(own[:4])}" if own else "none, also with other outputs",
        expect=f"a gradient to any of {', '.join(student)}",
        fix=fix,
    )
    return False


def gradients_of(value: Tensor, inputs: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradient of the sum of a value to each input: zeros where it does not depend on it."""
    wanted = list(inputs)
    if not value.requires_grad or not wanted:
        return [torch.zeros_like(x) for x in wanted]
    # The graph is kept: all values of a scene share the part that computes x0 from the raw output.
    found = torch.autograd.grad(value.sum(), wanted, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]


def variants_reach(term: nn.Module, scene: Scene) -> Iterator[bool]:
    """Yield whether the loss has a gradient with other weights and inputs: zeros at initialization are legitimate."""
    for scale, spread in ((0.1, False), (1.0, False), (1.0, True)):
        with suppress(Exception):  # inputs that do not occur in training prove nothing
            other = copy.deepcopy(term)
            disturb(other.parameters(), scale)
            varied = (scene.spread() if spread else scene).perturbed(scale)
            gradients = gradients_of(varied.value_of(other), varied.leaves["student"].values())
            yield any(bool(gradient.any()) for gradient in gradients)


def check_independence(findings: Findings, term: nn.Module, params: LossParams, scene: Scene) -> bool:
    """Check that the value of a sample does not depend on the other samples of the batch."""
    half = scene.size // 2
    if params.couples_samples or half < 1:
        return True
    rows = torch.arange(half, device=scene.views[next(iter(scene.views))].x.device)
    together = scene.value_of(copy.deepcopy(term)).detach()[:half]
    apart = scene.select(rows).value_of(copy.deepcopy(term)).detach()
    row = int((together - apart).abs().argmax())
    return findings.expect(
        is_near(apart, together, TOLERANCE.get(scene.dtype, LOOSE)),
        COUPLED,
        got=f"{together[row].item():.6g} in a batch of {scene.size}, {apart[row].item():.6g} in one of {half}",
        fix=DECLARE_COUPLED,
    )


def check_parameters(findings: Findings, term: nn.Module, costs: Iterable[Cost | None]) -> None:
    """Check that the stated parameters are those it has: those that are trained and, if stated, those that are not."""
    stated = [cost for cost in costs if cost is not None]
    for key, trained in (("parameters", True), ("frozen", False)):
        claimed = max((getattr(cost, key) for cost in stated), default=None)
        count = sum(p.numel() for p in term.parameters() if p.requires_grad == trained)
        right = claimed is None or abs(claimed - count) <= 0.01 * count or (not trained and claimed == 0)
        what = f"cost() states another number of {'' if trained else 'frozen '}parameters than it has"
        fix = f"return Cost({key}=..., ...), computed from the widths, or None if it is not known"
        findings.expect(right, what, got=claimed, expect=count, fix=fix)
