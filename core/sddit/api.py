"""sddit from Python: `build` a component, `load` a run or published weights, `sample` from it.

import sddit

model = sddit.load("runs/quickstart-1a2b3c")
images = sddit.sample(model, classes=[3, 7], per_class=4)             # uint8 [8, 3, H, W]
x0 = model.denoise(x, sigma, labels)                                  # [B, C, H, W]
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sddit.backbones import Backbone
from sddit.diffusion.draws import Draws
from sddit.diffusion.preconditioning import ModelDenoiser, denoise_view
from sddit.errors import error
from sddit.exchange.conversion import convert_from_layout
from sddit.exchange.files import read_weight_file
from sddit.generation import generate, of_classes
from sddit.interfaces import Context, Dataset, Network, NoiseSchedule, Outputs, Shapes, Tap, View
from sddit.plugins.host import registry
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import changed, resolve_tables, resolve_without_data
from sddit.recipes.selection import SLOTS
from sddit.recipes.start_weights import CONFIG, found, is_export, read_config, refuse_unknown_label
from sddit.recipes.validation import validated
from sddit.storage.checkpoints import Store
from sddit.storage.run_folder import RECIPE, recipe_path, refuse_changed
from sddit.storage.tensors import unpack
from sddit.training.ema import under
from sddit.training.networks import build_backbone
from sddit.training.precision import DTYPES, default_dtype
from sddit.training.warm_start import read_weights

if TYPE_CHECKING:
    from collections.abc import Sequence


KERNEL = SLOTS["attention"].default
"""The attention kernel of weights that come without a recipe."""


def build(kind: str, name: str, params: Mapping[str, Any] | None = None, **runtime: Any) -> Any:
    """Build one component: `sddit.build("losses", "discrimination", {"prototypes": 512}, widths={"encoder": 64}, ...)`.

    Args:
        kind: the registry, such as `losses`.
        name: the component, `name` or `plugin/name`.
        params: its settings as a recipe would write them; what is left out takes its default.
        runtime: what it is built with; `sddit.interfaces` says what each kind takes.

    Raises:
        SdditError: for an unknown name or a wrong setting, all problems at once.
    """
    component = registry(kind).usable(name)
    settings = validated(component.params, dict(params or {}), table=component.kind, where="")
    return component.build(settings, **runtime)


@dataclass(slots=True)
class Model:
    """A trained network F, with the noise schedule that says what its output means."""

    backbone: Backbone
    schedule: NoiseSchedule | None
    shapes: Shapes
    recipe: Recipe | None = None  # of the run it came from

    @property
    def num_classes(self) -> int:
        """Classes; the same number is the null label."""
        return self.shapes.num_classes

    @torch.no_grad()
    def raw(self, x: Tensor, t: Tensor, labels: Tensor, visible: Tensor | None = None) -> Tensor:
        """The network's own output at its own time: x [B, C, H, W] as it enters, t [B] integer steps or c_noise."""
        output, _, _ = self.backbone(x, t.to(x.dtype), labels, visible=visible)
        return torch.as_tensor(output)

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: float | Tensor, labels: Tensor) -> Tensor:
        """The estimate of x0 [B, C, H, W] for x of noise level sigma, variance-exploding: a number, or one for each image [B]."""
        denoiser = ModelDenoiser(self.backbone, self.require_schedule(), self.num_classes)
        if isinstance(sigma, Tensor) and sigma.dim():
            return torch.cat([denoiser(x[i : i + 1], float(s), labels[i : i + 1]).x0 for i, s in enumerate(sigma)])
        return denoiser(x, float(sigma), labels).x0

    def dataset(self, split: str = "test") -> Dataset:
        """The data set of the run it came from."""
        dataset: Dataset = self.require_recipe().dataset.build(split=split)
        return dataset

    def require_schedule(self) -> NoiseSchedule:
        """The noise schedule; weights of some published layouts come without one."""
        if self.schedule is None:
            raise error(
                "SD-C442", "these weights came without a noise schedule", where="model.schedule", fix="use model.raw"
            )
        return self.schedule

    def require_recipe(self) -> Recipe:
        """The recipe of the run it came from; weights from elsewhere have none."""
        if self.recipe is None:
            raise error("SD-C443", "these weights came without a recipe", where="model.recipe", fix="load a run folder")
        return self.recipe


def load(
    source: str | Path,
    *,
    layout: str = "",
    config: Mapping[str, Any] | None = None,
    weights: str = "",
    step: int | None = None,
    dtype: torch.dtype | None = None,
    trust_code: bool = False,
) -> Model:
    """Load a run folder, a folder of `sddit-run export`, or a safetensors file in a published layout. No data is needed.

    Args:
        source: the folder, or a `.safetensors` file.
        layout: for a file, the published layout, such as `dit` or `maskdit`.
        config: for a file, those of the constructor's arguments, under their published names, that the tensors do not tell.
        weights: for a run, `student` or the label of an [ema]; empty: the one the run samples with.
        step: for a run, which checkpoint; None: the newest good one.
        dtype: of the weights; None: as they are.
        trust_code: for an exported folder, run the one-file plugins that it brings, if any: they can do what you can.
    """
    path = Path(source)
    if path.is_dir():
        if is_export(path) and not (path / RECIPE).is_file():
            return load_exported(path, weights=weights, step=step, dtype=dtype, trust_code=trust_code)
        return load_run(path, weights=weights, step=step, dtype=dtype)
    if not path.is_file():
        raise error(
            "SD-C444",
            "nothing to load",
            where=str(path),
            expect="a run folder, an exported one, or a .safetensors file",
        )
    return load_published(path, layout, config or {}, dtype)


def load_run(folder: Path, *, weights: str = "", step: int | None = None, dtype: torch.dtype | None = None) -> Model:
    """The network of a run at its newest good checkpoint, or at `step`."""
    resolved = recipe_path(folder)
    refuse_changed(resolved)
    recipe = resolve_without_data(resolved)
    label = weights or recipe.sampled_weights
    refuse_unknown_label(label, ["student", *recipe.ema], folder)
    store = Store(folder / "checkpoints", keep=recipe.train.keep)
    checkpoint = store.open(step) if step is not None else store.latest(move_broken=False)
    if checkpoint is None:
        raise error(
            "SD-C447", "this run has no checkpoint yet", where=str(folder), fix="run its recipe until the first save"
        )
    for notice in store.notices:  # weights of an earlier step than was asked for
        warnings.warn(notice, stacklevel=3)
    name, prefix = ("model", "backbone.") if label == "student" else ("ema", f"{label}.")

    def read() -> dict[str, Tensor]:
        file = f"{name}.safetensors"
        return under(prefix, unpack(checkpoint.read(file), str(checkpoint.folder / file)))

    return filled(recipe, read, dtype, where=f"{checkpoint.folder}, {label}")


def load_exported(
    folder: Path,
    *,
    weights: str = "",
    step: int | None = None,
    dtype: torch.dtype | None = None,
    trust_code: bool = False,
) -> Model:
    """The network of a folder that `sddit-run export` wrote. Raises SD-C457 if it brings code that is not trusted."""
    tables = read_config(folder)["recipe"]
    code = [name for name in tables.get("plugins", []) if str(name).endswith(".py")]
    if code and not trust_code:
        raise error(
            "SD-C457",
            "this folder brings code of its own; nothing of it was run",
            where=str(folder),
            got=", ".join(map(str, code)),
            fix="read it; then sddit.load(FOLDER, trust_code=True), or sddit-run sample FOLDER --trust-code",
        )
    recipe = resolve_tables(tables, folder / CONFIG)
    source = found(folder, weights, step)
    return filled(recipe, lambda: read_weights(source), dtype, where=str(folder))


def filled(recipe: Recipe, read: Callable[[], dict[str, Tensor]], dtype: torch.dtype | None, *, where: str) -> Model:
    """The network of a recipe with weights. Raises SD-C410 where these are of another one."""
    with default_dtype(dtype or DTYPES[recipe.train.precision]):
        backbone = build_backbone(recipe, device="cpu")
        schedule: NoiseSchedule = recipe.noise_schedule.build()
    try:
        backbone.load_state_dict(read())
    except (KeyError, RuntimeError, FileNotFoundError) as mismatch:
        raise error(
            "SD-C410",
            "the checkpoint does not fit this recipe",
            where=where,
            got=shorten(str(mismatch), 160),
            expect="a checkpoint of the same recipe",
            fix=f"put the {RECIPE} of this run back",
        ) from mismatch
    return Model(backbone.eval(), schedule, recipe.shapes, recipe)


def load_published(path: Path, layout: str, config: Mapping[str, Any], dtype: torch.dtype | None) -> Model:
    """The network of a safetensors file whose tensors have the names of a published implementation."""
    converted = convert_from_layout(read_weight_file(path).state, layout, config)
    wanted = dtype or next(value.dtype for value in converted.state.values() if value.is_floating_point())
    with default_dtype(wanted):
        backbone, named = converted.build_trained(build("attention", KERNEL)), converted.description.noise_schedule
        schedule = build("noise_schedules", *named) if named else None
    return Model(backbone, schedule, converted.shapes)


def sample(
    model: Model,
    *,
    classes: Sequence[int] | None = None,
    per_class: int = 8,
    seed: int | None = None,
    steps: int | None = None,
    device: str = "cpu",
    overrides: Sequence[str] = (),
) -> Tensor:
    """Images of a loaded run, uint8 [n, 3, H, W], class by class.

    Args:
        model: from `load` of a run folder.
        classes: which; None: all of them.
        per_class: images of each.
        seed: None: the run's own, so that the pictures are those of its grids.
        steps: sampler steps; None: the recipe's.
        device: `cpu` or `cuda`.
        overrides: of the recipe's sampler and guidance, such as `["guidance.name=cfg", "guidance.scale=1.5"]`.
    """
    recipe = model.require_recipe()
    changes = [*overrides, *([f"sampler.steps={steps}"] if steps is not None else [])]
    if changes:
        recipe = changed(recipe, changes)
    wanted = list(range(model.num_classes)) if classes is None else list(classes)
    request = of_classes(wanted or [0], per_class, model.num_classes, recipe.seed if seed is None else seed)
    x = generate(model.backbone.to(device), model.require_schedule(), recipe, request, device=torch.device(device))
    return model.dataset().to_images(x)


def view(
    schedule: NoiseSchedule,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    labels: Tensor,
    *,
    visible: Tensor | None = None,
    network: Network = "student",
) -> View:
    """A noisy look at given images.

    Args:
        schedule: what t means.
        x0: clean images [B, C, H, W].
        noise: unit noise [B, C, H, W].
        t: noise levels [B] in the schedule's own time.
        labels: [B]; the number of classes is the null label.
        visible: [B, K] tokens that are not hidden, rising; None: all.
        network: which network sees it.
    """
    x = schedule.perturb(x0, noise, t)
    return View(network=network, x=x, t=t, labels=labels, x0=x0, noise=noise, visible=visible)


def observe(model: Model, seen: View, *, taps: Sequence[Tap] = (), output: bool = True) -> Outputs:
    """What a loaded network gives for a view, with gradient: its own output, the x0 made of it, tokens at `taps`."""
    return denoise_view(model.backbone, model.require_schedule(), seen, taps, output)


def context(
    schedule: NoiseSchedule,
    *,
    num_classes: int = 0,
    step: int = 0,
    total_steps: int = 1,
    seed: int = 0,
    ema_modules: Mapping[str, nn.Module] | None = None,
) -> Context:
    """What a loss may know of a run: a moment of one.

    Args:
        schedule: that of the views.
        num_classes: the null label.
        step, total_steps: the moment, for schedules of values.
        seed: of what the loss draws by itself.
        ema_modules: the teacher's copy of the loss's own modules.
    """
    return Context(
        step=step,
        total_steps=total_steps,
        schedule=schedule,
        draws=Draws(seed, step, torch.zeros(1, dtype=torch.int64)),
        num_classes=num_classes,
        ema_modules=ema_modules or {},
    )
