"""What the core itself offers: data sets, feature extractors, optimizers and trackers. A plugin like any other."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from hashlib import file_digest
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sddit.errors import Problem
from sddit.hookspecs import hookimpl
from sddit.interfaces import (
    DataFacts,
    Dataset,
    DatasetParams,
    FeatureExtractor,
    FeatureParams,
    Optimizer,
    OptimizerParams,
    Tracker,
    TrackerParams,
)
from sddit.recipes.checks import has_heads
from sddit.recipes.recipe import Recipe
from sddit.registry import Registry

# ---------------------------------------------------------------------------------------------------------- data sets


Size = Annotated[int, Field(ge=1, le=65536)]
Spread = Annotated[float, Field(ge=0)]


class ImageParams(DatasetParams):
    """The key that every data set of images here has."""

    labels: bool = Field(True, description="Learn the classes; false: unconditional, with no class at all.")


class DigitsParams(ImageParams):
    """Handwritten digits, 8x8 grey: seconds are enough to learn something."""

    def facts(self) -> DataFacts:
        from sddit.data.embedded import embedded_facts, without_labels

        facts = embedded_facts("digits")
        return facts if self.labels else without_labels(facts)


class FashionParams(ImageParams):
    """Fashion-MNIST, 28x28 grey: ten kinds of clothing."""

    source: str = Field(
        "embedded",
        min_length=1,
        description="embedded: the 12,000 images of the wheel; system: Debian's package dataset-fashion-mnist; else the "
        "folder with its four .gz files. Only this one is tried.",
        json_schema_extra={"path": True, "words": ["embedded", "system"]},
    )

    def facts(self) -> DataFacts:
        from sddit.data.embedded import without_labels
        from sddit.data.fashion import fashion_facts
        from sddit.data.scaling import refuse_constant

        facts = fashion_facts(self.source)
        refuse_constant(self, facts)
        return facts if self.labels else without_labels(facts)


class FolderParams(ImageParams):
    """Your own images: one folder with a sub-folder for each class."""

    path: str = Field(
        min_length=1,
        description="The folder, relative to the recipe. Its sub-folders, sorted by name, are the classes.",
        json_schema_extra={"path": True},
    )
    size: int = Field(32, ge=4, le=1024, description="Height and width in pixels; images are scaled and cut to it.")
    channels: Literal[1, 3] = Field(3, description="3: colour; 1: grey.")
    holdout: float = Field(
        0.1, ge=0, le=0.9, description="Share of images in the test split, chosen by each one's name: it never moves."
    )

    def facts(self) -> DataFacts:
        from sddit.data.folder import folder_facts
        from sddit.data.scaling import refuse_constant

        facts = folder_facts(self)
        refuse_constant(self, facts)
        return facts


class LatentsParams(ImageParams):
    """Cached latents: the moments of an encoder's posterior, one for each image."""

    path: str = Field(
        min_length=1,
        description="The folder with latents.json and its shards, relative to the recipe.",
        json_schema_extra={"path": True},
    )
    posterior: Literal["sample", "mean"] = Field(
        "sample", description="sample: drawn anew at every visit of an image; mean: always the middle of its posterior."
    )
    normalize: Literal["range", "standard"] = Field(
        "range",
        description="range: latents times the cache's scale; standard: shifted and scaled per channel to mean 0 and std 0.5 "
        "(EDM2, arXiv:2312.02696).",
    )
    holdout: float = Field(
        0.0, ge=0, le=0.9, description="Share of latents in the test split; 0: train on all of them."
    )

    def facts(self) -> DataFacts:
        from sddit.data.latents import latents_facts
        from sddit.data.scaling import refuse_constant

        facts = latents_facts(self)
        refuse_constant(self, facts)
        return facts

    def check(self, recipe: Recipe) -> Iterable[Problem]:
        """Latents that are mirrored already are not mirrored again."""
        from sddit.data.latents import read_index

        if self.flip and (stored := read_index(self.path).index.flip) != "none":
            yield Problem(
                "SD-R108",
                "these latents were mirrored before they were encoded",
                where="dataset.flip",
                got=f"flip = true, and the cache says flip: {stored}",
                fix="dataset.flip = false",
            )


class DeclaredParams(DatasetParams):
    """Shapes without images, for models that come from elsewhere: such a recipe plans and samples, and trains on nothing."""

    image: tuple[Size, Size, Size] = Field(strict=False, description="C, H and W as the network sees them.")
    classes: int = Field(0, ge=0, le=10**6, description="Number of classes; 0: unconditional. Or give class_names.")
    class_names: tuple[str, ...] = Field((), strict=False, description="Names of the classes, by label.")
    mean: tuple[float, ...] = Field((), strict=False, description="Of each channel; left out: 0.")
    std: tuple[Spread, ...] = Field((), strict=False, description="Of each channel; left out: 0.5.")
    train_images: int = Field(0, ge=0, le=10**12, description="How many images the model was trained on; 0: not known.")

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != self.image[0]:
                raise ValueError(f"{key} has {len(values)} numbers for {self.image[0]} channels")
        if self.class_names and self.classes not in (0, len(self.class_names)):
            raise ValueError(f"classes = {self.classes}, and class_names has {len(self.class_names)}")
        return self

    @property
    def holds_images(self) -> bool:
        return False

    def facts(self) -> DataFacts:
        from sddit.data.declared import declared_facts
        from sddit.data.scaling import refuse_constant

        facts = declared_facts(self)
        refuse_constant(self, facts)
        return facts

    def check(self, recipe: Recipe) -> Iterable[Problem]:
        """Nothing can be scored against no images."""
        from sddit.data.declared import no_images

        return no_images("evaluate.features").problems if recipe.features else ()

    def idle(self, recipe: Recipe) -> Iterable[str]:
        return ("flip",)


@hookimpl
def register_datasets(registry: Registry[Dataset]) -> None:
    registry.add(
        "digits",
        "sddit.data.splits:digits",
        params=DigitsParams,
        summary="Handwritten digits, 8x8 grey, 1437 + 360 images, in the wheel.",
    )
    registry.add(
        "fashion",
        "sddit.data.splits:fashion",
        params=FashionParams,
        summary="Fashion-MNIST, 28x28 grey: 10,000 + 2,000 images in the wheel, or all 70,000 of your own copy.",
        paper="arXiv:1708.07747",
    )
    registry.add(
        "folder",
        "sddit.data.splits:folder",
        params=FolderParams,
        summary="Your own images, a sub-folder for each class.",
    )
    registry.add(
        "latents",
        "sddit.data.latent_splits:latents",
        params=LatentsParams,
        summary="Cached latents of your own encoder: its moments, in safetensors shards.",
    )
    registry.add(
        "declared",
        "sddit.data.latent_splits:declared",
        params=DeclaredParams,
        summary="Shapes without images, to sample models that were trained elsewhere.",
    )


# ------------------------------------------------------------------------------------------------- feature extractors


class MobilenetParams(FeatureParams):
    """MobileNetV2 with its ImageNet weights, cut after its fourteenth stage. Images are resized to 64x64."""

    @property
    def dimensions(self) -> int:
        return 96


class ClassifierParams(FeatureParams):
    """A small network trained to name the classes of an embedded data set: `digits` or `fashion`."""

    @property
    def dimensions(self) -> int:
        return 64

    @property
    def own_figures(self) -> tuple[str, ...]:
        return ("class_accuracy",)

    def check(self, recipe: Recipe) -> Iterable[Problem]:
        """The data must be of a kind that a shipped classifier knows."""
        return no_classifier(recipe.facts)


Hash = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]


class InceptionParams(FeatureParams):
    """FID's Inception network with your own weights file, in a table [features.LABEL]; with FID, sFID, Inception score,
    precision and recall as ADM's suite defines them (arXiv:2105.05233). Untested with the original weights so far."""

    weights: str = Field(
        min_length=1,
        description="The file pt_inception-2015-12-05, relative to the recipe: a state dict, of which weights alone are read.",
        json_schema_extra={"path": True},
    )
    reference: str = Field(
        "",
        description="A reference batch, npz: mu and sigma for FID, mu_s and sigma_s for sFID, arr_0 for precision and recall. "
        "Empty: the Inception score alone.",
        json_schema_extra={"path": True},
    )
    weights_sha256: Hash = Field("", description="Hash that the file must have; filled in where it is left out.")
    reference_sha256: Hash = Field("", description="The same of the reference.")

    @property
    def dimensions(self) -> int:
        return 2048

    @property
    def own_figures(self) -> tuple[str, ...]:
        compared = ("fid", "sfid", "precision_adm", "recall_adm") if self.reference else ()
        return ("inception_score", *compared)

    def fingerprinted(self) -> Self:
        files = {
            key: file for key, file in self._files() if not getattr(self, f"{key}_sha256") and Path(file).is_file()
        }
        return self.model_copy(update={f"{key}_sha256": hash_of(Path(file)) for key, file in files.items()})

    def check(self, recipe: Recipe) -> Iterable[Problem]:
        """The files are there, and are the ones that were meant."""
        label = next(label for label, chosen in recipe.features.items() if chosen.params is self)
        for key, file in self._files():
            code, where = "SD-T940" if key == "weights" else "SD-T941", f"features.{label}.{key}"
            meant = getattr(self, f"{key}_sha256")
            if not Path(file).is_file():
                yield Problem(code, f"the file of {key} is not there", where, file)
            elif (found := hash_of(Path(file))) != meant:
                yield Problem(code, f"the file of {key} is another one", where, f"sha256 {found}", f"sha256 {meant}")

    def _files(self) -> list[tuple[str, str]]:
        """(key, path) of the files that are named."""
        return [(key, path) for key, path in (("weights", self.weights), ("reference", self.reference)) if path]


class PixelsParams(FeatureParams):
    """The image itself, averaged over a grid of 16x16 places: no network and no classes, for any data set."""

    @property
    def dimensions(self) -> int:
        return 3 * 16**2


def hash_of(path: Path) -> str:
    """sha256 of a file; a file is read once, as long as neither its size nor its time of change moves."""
    state = path.stat()
    return _hash_of(path, state.st_size, state.st_mtime_ns)


@cache
def _hash_of(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def no_classifier(facts: DataFacts) -> list[Problem]:
    """The problem that no classifier was shipped for this data; none if one was."""
    assets = Path(__file__).parent / "evaluation" / "assets"
    shipped = sorted(path.stem.removeprefix("classifier_") for path in assets.glob("classifier_*.json"))
    if facts.domain in shipped:
        return []
    return [
        Problem(
            "SD-T910",
            "no classifier was trained for this data set",
            where="evaluate.features",
            got=facts.domain or facts.source,
            expect=f"the data set {' or '.join(shipped)}",
            fix='evaluate.features=["mobilenet"], or a plugin with a classifier of your own',
        )
    ]


@hookimpl
def register_features(registry: Registry[FeatureExtractor]) -> None:
    registry.add(
        "mobilenet",
        "sddit.evaluation.features:mobilenet",
        params=MobilenetParams,
        summary="MobileNetV2 on ImageNet, 96 pooled features. Its distance is not FID, whose network is another.",
        paper="arXiv:1801.04381",
    )
    registry.add(
        "classifier",
        "sddit.evaluation.features:classifier",
        params=ClassifierParams,
        summary="A small CNN that knows the classes of digits or fashion: 64 features, and class accuracy.",
    )
    registry.add(
        "inception",
        "sddit.evaluation.adm:inception",
        params=InceptionParams,
        summary="FID's Inception network, of your own weights file: 2048 features, and ADM's figures. Untested with that file.",
        paper="arXiv:1706.08500",
    )
    registry.add(
        "pixels",
        "sddit.evaluation.features:pixels",
        params=PixelsParams,
        summary="The pixels of a 16x16 thumbnail, 768 features: finds copies of training images that no network favours.",
    )


# -------------------------------------------------------------------------------------------- optimizers and trackers

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWParams(OptimizerParams):
    """Settings of `adamw`. The defaults are DiT's (arXiv:2212.09748): no decay."""

    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), strict=False, description="Decay of the averages of the gradient and of its square."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second average.")
    weight_decay: float = Field(0.0, ge=0, description="Share of a weight taken away at each step, times lr.")
    head_weight_decay: float | None = Field(
        None, ge=0, description="Weight decay of the losses' own heads; left out: weight_decay."
    )
    decay_all: bool = Field(False, description="Decay biases, norms and other one-dimensional weights too.")

    @property
    def state_per_parameter(self) -> int:
        return 2

    def decay(self, head: bool) -> float:
        """The weight decay of the losses' own heads, or of all else."""
        return self.weight_decay if self.head_weight_decay is None or not head else self.head_weight_decay

    def idle(self, recipe: Recipe) -> Iterable[str]:
        heads = has_heads(recipe)
        if not heads:
            yield "head_weight_decay"
        if not self.weight_decay and not (heads and self.decay(head=True)):
            yield "decay_all"


class CsvParams(TrackerParams):
    """`csv` has no settings."""


class TensorboardParams(TrackerParams):
    """`tensorboard` has no settings."""


@hookimpl
def register_optimizers(registry: Registry[Optimizer]) -> None:
    registry.add(
        "adamw",
        "sddit.optimizers:AdamW",
        params=AdamWParams,
        summary="Adam with decoupled weight decay.",
        paper="arXiv:1711.05101",
    )


@hookimpl
def register_trackers(registry: Registry[Tracker]) -> None:
    registry.add(
        "csv", "sddit.trackers:Csv", params=CsvParams, summary="metrics.csv in the run folder, one line a logged step."
    )
    registry.add(
        "tensorboard",
        "sddit.trackers:Tensorboard",
        params=TensorboardParams,
        summary="TensorBoard event files in the run folder.",
        requires=("tensorboard",),
    )
