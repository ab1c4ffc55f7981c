"""Use sddit from Python: load a run or published weights, sample, build components, evaluate losses on chosen inputs.

import sddit

model = sddit.load("runs/quickstart-1a2b3c")
images = sddit.sample(model, classes=[3, 7], per_class=4)             # uint8 [8, 3, H, W]
latents = sddit.sample(model, classes=[3, 7], latents=True)           # of a run on latents, in the encoder's units
x0 = model.denoise(x, sigma, labels)                                  # [B, C, H, W]

schedule = model.require_schedule()
seen = sddit.view(schedule, x0, noise, t, labels)                     # a noisy view of given images
outputs = sddit.observe(model, seen, taps=["encoder"])                # with gradient
ctx = sddit.context(schedule, num_classes=model.num_classes)          # for a loss built with `sddit.build`
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from textwrap import shorten
from typing import Any, get_args

import torch
from torch import Tensor

from sddit.backbones import Backbone
from sddit.data.class_choice import choose_classes
from sddit.diffusion.preconditioning import ModelDenoiser, denoise_view
from sddit.errors import error, one_of
from sddit.exchange.conversion import convert_from_layout
from sddit.exchange.files import read_weight_file
from sddit.generation import Sampling, caption_of, guidance_overrides, image_converter, of_classes
from sddit.interfaces import Dataset, NoiseSchedule, Outputs, Shapes, Split, Tap, View
from sddit.plugins.build_arguments import check_arguments, check_settings
from sddit.plugins.host import registry
from sddit.recipes.parsing import MAX_INTEGER
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import changed, refuse_changed_data, resolve_run, resolve_tables, resolve_without_data
from sddit.recipes.selection import DEFAULTS
from sddit.recipes.start_weights import (
    CONFIG,
    find_checkpoint,
    find_weights,
    is_export,
    read_config,
    refuse_unknown_label,
    verify_export,
)
from sddit.recipes.validation import validated
from sddit.storage.manifest import verify
from sddit.storage.run_folder import RECIPE, recipe_path, refuse_changed
from sddit.storage.tensors import unpack
from sddit.training.arguments import (
    checked_config,
    checked_overrides,
    device_argument,
    dtype_argument,
    images_argument,
    labels_argument,
    levels_argument,
    named_refusal,
    network_input,
    number_argument,
    path_argument,
    sigmas_argument,
    text_argument,
    visible_argument,
    whole_argument,
    wrong_argument,
)
from sddit.training.ema import with_prefix
from sddit.training.networks import DTYPES, build_backbone, default_dtype
from sddit.training.warm_start import read_weights

KERNEL = DEFAULTS["attention"]
"""The attention kernel of weights that come without a recipe."""
MAX_PER_CLASS = 10_000  # images of one call


def build(kind: str, name: str, params: Mapping[str, Any] | None = None, **runtime: Any) -> Any:
    """Build one component: `sddit.build("losses", "discrimination", {"prototypes": 512}, widths={"encoder": 64}, ...)`.

    Args:
        kind: the registry, such as `losses`.
        name: the component, `name` or `plugin/name`.
        params: its settings as in a recipe; the others take their defaults.
        runtime: what its kind is built with besides settings. A component needs some of these:
            backbones: image, num_classes, outputs, attention
            losses: widths, grid, image, num_classes; mean and std of each channel, for some
            pair_samplers: grid
            samplers, guidances: schedule
            datasets: split
            features: facts, device
            codecs: device; facts, to decode a cache without a codec of its own
            trackers: folder

    Raises:
        SdditError: for an unknown name, a wrong setting or a wrong argument (SD-T926), all problems at once.
    """
    component = registry(text_argument(kind, "kind")).usable(text_argument(name, "name"))
    given = check_settings(kind, name, {} if params is None else params)
    settings = validated(component.params, given, table=component.kind, where="")
    if isinstance(runtime.get("device"), str):
        runtime["device"] = device_argument(runtime["device"])
    if isinstance(runtime.get("folder"), str):
        runtime["folder"] = Path(runtime["folder"])
    check_arguments(component, runtime)
    try:
        return component.build(settings, **runtime)
    except (KeyError, ValueError) as refused:
        where, got = f"sddit.build({kind!r}, {name!r})", ", ".join(runtime) or "no arguments"
        what = f"it cannot be built with these settings and arguments: {refused}"
        raise error("SD-T926", what, where=where, got=got, expect=component.summary) from refused


@dataclass(slots=True)
class Model:
    """A trained network F with its noise schedule, which defines the meaning of its output."""

    backbone: Backbone
    schedule: NoiseSchedule | None
    shapes: Shapes
    recipe: Recipe | None = None  # of its run, if any

    @property
    def num_classes(self) -> int:
        """Number of classes, which is also the null label."""
        return self.shapes.num_classes

    @torch.no_grad()
    def raw(self, x: Tensor, t: Tensor, labels: Tensor, visible: Tensor | None = None) -> Tensor:
        """Return the raw network output for its raw inputs: x [B, C, H, W], t [B] integer steps or c_noise."""
        x = network_input(x, "x", self.shapes.image, self.backbone)
        t, labels = levels_argument(t, "t", len(x)), labels_argument(labels, len(x), self.num_classes)
        with named_refusal("visible"):
            output, _, _ = self.backbone(x, t.to(x.dtype), labels, visible=visible_argument(visible, len(x)))
        return torch.as_tensor(output)

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: float | Tensor, labels: Tensor) -> Tensor:
        """Estimate x0 [B, C, H, W] from x at variance-exploding noise level sigma: one number, or one per image [B]."""
        denoiser = ModelDenoiser(self.backbone, self.require_schedule(), self.num_classes)
        x = images_argument(x, "x", self.shapes.image)
        labels, sigmas = labels_argument(labels, len(x), self.num_classes), sigmas_argument(sigma, len(x))
        if isinstance(sigma, Tensor) and sigma.dim():
            return torch.cat([denoiser(x[i : i + 1], s, labels[i : i + 1]).x0 for i, s in enumerate(sigmas)])
        return denoiser(x, sigmas[0], labels).x0

    def dataset(self, split: str = "test") -> Dataset:
        """Return the data set of its run: its split `train` or `test`."""
        if split not in get_args(Split):
            expect = one_of(str(split), get_args(Split))
            raise error("SD-T925", f"no split {split!r}", where="split", got=repr(split), expect=expect)
        dataset: Dataset = self.require_recipe().dataset.build(split=split)
        return dataset

    def require_schedule(self) -> NoiseSchedule:
        """Return the noise schedule. Raises SD-C442 for weights without one, as in some published layouts."""
        if self.schedule is None:
            raise error("SD-C442", "these weights have no noise schedule", where="model.schedule", fix="use model.raw")
        return self.schedule

    def require_recipe(self) -> Recipe:
        """Return the recipe of its run. Raises SD-C443 for weights that are not from a run."""
        if self.recipe is None:
            raise error("SD-C443", "these weights have no recipe", where="model.recipe", fix="load a run folder")
        return self.recipe


def load(
    source: str | Path,
    *,
    layout: str = "",
    config: Mapping[str, Any] | None = None,
    weights: str = "",
    step: int | None = None,
    dtype: torch.dtype | str | None = None,
    trust_code: bool = False,
) -> Model:
    """Load a run folder, a folder of `sddit-run export`, or a safetensors file in a published layout. Needs no data.

    Args:
        source: the folder, or a `.safetensors` file.
        layout: for a file, the published layout, such as `dit` or `maskdit`.
        config: for a file, constructor arguments that the tensors do not determine, under their published names.
        weights: for a run, `student` or the label of an [ema]; empty: the weights the run samples with. For a file, the
            prefix of the names of one set.
        step: for a run, the checkpoint; None: the newest intact one.
        dtype: of the weights, such as `torch.float64` or `float64`; None: unchanged.
        trust_code: for an exported folder, run the one-file plugins that it contains. They run with your permissions.

    Warns of tensors that were renamed, dropped or converted, and of arguments that were guessed.
    """
    path = path_argument(source, "source")
    layout, weights = text_argument(layout, "layout"), text_argument(weights, "weights")
    stated = checked_config(config)
    if step is not None:
        step = whole_argument(step, "step", 0, MAX_INTEGER)
    dtype = dtype_argument(dtype)
    if path.is_dir():
        if layout or stated:
            got = "layout" if layout else "config"
            expect, fix = "for a file only", f"leave out {got}, or pass the weight file in this folder"
            raise error("SD-T925", f"{got} does not concern a folder", where=got, got=str(path), expect=expect, fix=fix)
        if not (path / RECIPE).is_file():
            verify_export(path)
        if is_export(path) and not (path / RECIPE).is_file():
            return load_exported(path, weights, step, dtype, trust_code)
        return load_run(path, weights=weights, step=step, dtype=dtype)
    if not path.is_file():
        expect = "a run folder, an exported one, or a .safetensors file"
        raise error("SD-C444", "nothing to load", where=str(path), expect=expect)
    if step is not None:
        raise error("SD-T925", "a weight file has no steps", where="step", got=f"step = {step}", expect="step=None")
    file = read_weight_file(path, weights=weights)
    converted = convert_from_layout(file.state, layout, stated, str(path))
    notes = (*file.notes, *converted.notes)
    if notes or converted.guessed or converted.never_drops_labels:
        warnings.warn(f"{path}: {'; '.join(converted.lines(notes))}", stacklevel=2)
    wanted = dtype or reduce(torch.promote_types, {value.dtype for value in converted.state.values()})
    with default_dtype(wanted):
        backbone, named = converted.build_trained(build("attention", KERNEL)), converted.description.noise_schedule
        schedule = build("noise_schedules", *named) if named else None
    return Model(backbone, schedule, converted.shapes)


def load_run(folder: Path, *, weights: str = "", step: int | None = None, dtype: torch.dtype | None = None) -> Model:
    """Load the network of a run at its newest intact checkpoint, or at `step`."""
    resolved = recipe_path(folder)
    refuse_changed(resolved)
    recipe = resolve_without_data(resolved)
    label = weights or recipe.evaluate.weights
    refuse_unknown_label(label, ["student", *recipe.ema], folder)
    checkpoint = find_checkpoint(folder, step, read=verify)
    name, prefix = ("model", "backbone.") if label == "student" else ("ema", f"{label}.")

    def read() -> dict[str, Tensor]:
        file = f"{name}.safetensors"
        return with_prefix(prefix, unpack(checkpoint.read(file), str(checkpoint.folder / file)))

    return build_with_weights(recipe, read, dtype, where=f"{checkpoint.folder}, {label}")


def load_run_with_data(folder: Path) -> Model:
    """Load the network of a run whose data is used with it. Raises what is wrong with the data, or SD-C407."""
    model = load_run(folder)
    recipe = model.require_recipe()
    if recipe.dataset.params.holds_images:
        refuse_changed_data(folder, recipe.facts)
    else:
        resolve_run(folder)  # raises what is wrong with the data of the run, if it has any
    return model


def load_exported(folder: Path, weights: str, step: int | None, dtype: torch.dtype | None, trust_code: bool) -> Model:
    """Load the network of a folder from `sddit-run export`. Raises SD-C457 if it contains code that is not trusted."""
    tables = read_config(folder)["recipe"]
    code = [name for name in tables.get("plugins", []) if str(name).endswith(".py")]
    if code and not trust_code:
        raise error(
            "SD-C457",
            "this folder contains plugin code; none of it was run",
            where=str(folder),
            got=", ".join(map(str, code)),
            fix="read it; then sddit.load(FOLDER, trust_code=True), or sddit-run sample FOLDER --trust-code",
        )
    recipe = resolve_tables(tables, folder / CONFIG)
    source = find_weights(folder, weights, step)
    return build_with_weights(recipe, lambda: read_weights(source), dtype, where=str(folder))


def build_with_weights(
    recipe: Recipe, read: Callable[[], dict[str, Tensor]], dtype: torch.dtype | None, *, where: str
) -> Model:
    """Build the network of a recipe and load its weights. Raises SD-C410 if they do not fit."""
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
            fix=f"restore the {RECIPE} of this run",
        ) from mismatch
    return Model(backbone.eval(), schedule, recipe.shapes, recipe)


def sample(
    model: Model,
    *,
    classes: str | int | Iterable[str | int] | None = None,
    per_class: int = 8,
    seed: int | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
    device: str | torch.device = "cpu",
    overrides: str | Sequence[str] = (),
    latents: bool = False,
) -> Tensor:
    """Sample images of a loaded run, uint8 [n, 3, H, W], class by class.

    The samples of a run on latents are decoded by the codec of its recipe. Without one, the images are previews of
    three channels.

    Args:
        model: from `load` of a run folder.
        classes: class numbers or names, such as `[3, "cat"]`, or a text as for `--classes`; None: all classes. The
            rule is that of `sddit.data.class_choice`.
        per_class: images of each class.
        seed: None: that of the run, which gives the images of its grids.
        steps: sampler steps; None: the recipe's.
        sampler: its name; None: the recipe's.
        guidance: guidance scale; None: the recipe's guidance. Without guidance in the recipe, classifier-free guidance.
        device: `cpu`, `cuda`, `cuda:1` or a torch.device.
        overrides: further changes of the recipe's sampler and guidance, such as `["guidance.interval=[0.2, 5.0]"]`.
        latents: return latents [n, C, H, W] float32 in the units of the encoder, without the cache's scale and
            normalisation. Raises SD-T913 for a run on images.
    """
    sampling = plan_sampling(
        model,
        classes=classes,
        per_class=per_class,
        seed=seed,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        device=device,
        overrides=overrides,
    )
    if latents:
        return sampling.latents().float()
    if not sampling.recipe.facts.gives_images:
        shown = caption_of(sampling.recipe)
        warnings.warn(f"{shown}: sddit.sample(..., latents=True) returns the latents", stacklevel=2)
    return image_converter(sampling.recipe, model.dataset(), device_argument(device))(sampling.x())


def loaded_model(value: Any) -> Model:
    """Return a model from `load`. Raises SD-T925 for anything else."""
    if not isinstance(value, Model):
        expect = "a model from sddit.load(RUN)"
        raise error("SD-T925", "not a loaded model", where="model", got=type(value).__name__, expect=expect)
    return value


def plan_sampling(
    model: Model,
    *,
    classes: str | int | Iterable[str | int] | None,
    per_class: int,
    seed: int | None,
    steps: int | None,
    sampler: str | None,
    guidance: float | None,
    device: str | torch.device,
    overrides: str | Sequence[str] = (),
) -> Sampling:
    """Check the arguments of `sample`, and return what they ask for."""
    recipe = loaded_model(model).require_recipe()
    changes = checked_overrides(overrides)
    if sampler is not None:
        changes.append(f"sampler.name={text_argument(sampler, 'sampler')}")
    if guidance is not None:
        changes += guidance_overrides(recipe, number_argument(guidance, "guidance"))
    if steps is not None:
        changes.append(f"sampler.steps={whole_argument(steps, 'steps', 2, MAX_INTEGER)}")
    if changes:
        recipe = changed(recipe, changes)
    everything = list(range(max(model.num_classes, 1)))
    names = recipe.facts.class_names
    wanted = everything if classes is None else choose_classes(classes, names, where="classes")
    count = whole_argument(per_class, "per_class", 1, MAX_PER_CLASS)
    chosen = recipe.seed if seed is None else whole_argument(seed, "seed", 0, MAX_INTEGER)
    request = of_classes(wanted, count, model.num_classes, chosen)
    return Sampling(model.backbone.to(device_argument(device)), model.require_schedule(), recipe, request)


def observe(model: Model, seen: View, *, taps: Sequence[Tap] = (), output: bool = True) -> Outputs:
    """Run a loaded network on a view, with gradient. Returns its output, the resulting x0, and tokens at `taps`."""
    schedule = loaded_model(model).require_schedule()
    if not isinstance(seen, View):
        raise error("SD-T925", "not a view", where="seen", got=type(seen).__name__, expect="a view from sddit.view")
    if not isinstance(taps, (list, tuple)):
        raise wrong_argument("taps is not a list", "taps", taps, 'a list such as ["encoder"]')
    network_input(seen.x, "seen.x", model.shapes.image, model.backbone)
    labels_argument(seen.labels, len(seen.x), model.num_classes)
    with named_refusal("sddit.observe"):
        return denoise_view(model.backbone, schedule, seen, taps, output)
