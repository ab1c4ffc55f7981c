"""Define settings of the built-in feature extractors. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import Field

from sddit.errors import Problem
from sddit.interfaces import (
    DataFacts,
    EvaluateMode,
    FeatureParams,
    ModeOption,
    RecipeView,
    Sha256,
    file_sha256,
)


class MobilenetParams(FeatureParams):
    """MobileNetV2 with its ImageNet weights, cut after its fourteenth stage. Images are resized to 64x64."""

    @property
    def dimensions(self) -> int:
        return 96


class ClassifierParams(FeatureParams):
    """A small network trained to name the classes of an embedded data set: `digits`, `fashion` or `emoji`."""

    @property
    def dimensions(self) -> int:
        return 64

    @property
    def own_figures(self) -> tuple[str, ...]:
        return ("class_accuracy",)

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Return the data must be of a kind that a shipped classifier knows."""
        return no_classifier(recipe.facts)


ADM_MODE = EvaluateMode(
    name="adm",
    options=(
        ModeOption(
            "inception",
            "FILE",
            "Weights of FID's Inception network.",
        ),
        ModeOption("reference", "NPZ", "Statistics of real images, or real images, for --inception."),
    ),
    function="sddit_standard.features.adm:score_samples",
    reference="reference",
    statistics="sddit_standard.features.adm:real_statistics",
    heading="{samples} samples against {reference}, weights {weights_sha256:.12}",
    rows={
        "fid": "FID",
        "sfid": "sFID",
        "inception_score": "Inception score",
        "precision": "precision",
        "recall": "recall",
    },
)


class InceptionParams(FeatureParams):
    """FID's Inception network with your own weights file, in a table [features.LABEL]; with FID, sFID, Inception score,
    precision and recall as ADM's suite defines them (arXiv:2105.05233). Not yet run with the original file."""

    weights: str = Field(
        min_length=1,
        description="The file pt_inception-2015-12-05, relative to the recipe: a state dict; only weights are read.",
        json_schema_extra={"path": True},
    )
    reference: str = Field(
        "",
        description="A reference batch, npz: mu and sigma for FID, mu_s and sigma_s for sFID, arr_0 for precision "
        "and recall. "
        "Empty: the Inception score alone.",
        json_schema_extra={"path": True},
    )
    weights_sha256: Sha256 = Field("", description="Hash that the file must have; filled in if not set.")
    reference_sha256: Sha256 = Field("", description="The same of the reference.")

    @property
    def dimensions(self) -> int:
        return 2048

    @property
    def own_figures(self) -> tuple[str, ...]:
        compared = ("fid", "sfid", "precision_adm", "recall_adm") if self.reference else ()
        return ("inception_score", *compared)

    @classmethod
    def evaluate_modes(cls) -> tuple[EvaluateMode, ...]:
        return (ADM_MODE,)

    def fingerprinted(self) -> Self:
        files = {
            key: file for key, file in self._files() if not getattr(self, f"{key}_sha256") and Path(file).is_file()
        }
        return self.model_copy(update={f"{key}_sha256": file_sha256(Path(file)) for key, file in files.items()})

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Return the files are there, and are the ones that were meant."""
        label = next(label for label, chosen in recipe.features.items() if chosen.params is self)
        for key, file in self._files():
            code, where = "SD-T940" if key == "weights" else "SD-T941", f"features.{label}.{key}"
            meant = getattr(self, f"{key}_sha256")
            if not Path(file).is_file():
                yield Problem(code, f"the file of {key} is not there", where, file)
            elif (found := file_sha256(Path(file))) != meant:
                yield Problem(code, f"the file of {key} is another one", where, f"sha256 {found}", f"sha256 {meant}")
            elif key == "reference":
                yield from self._compare(recipe.facts, where)[0]

    def warnings(self, recipe: RecipeView) -> Iterable[str]:
        """Return what the reference does not state."""
        from sddit.data.references import not_compared

        if Path(self.reference).is_file() and (names := self._compare(recipe.facts)[1]):
            yield not_compared(Path(self.reference), names)

    def _compare(self, facts: DataFacts, where: str = "") -> tuple[list[Problem], list[str]]:
        """Return by which facts samples cannot be compared with the reference, and which facts are not known.

        The size of samples of latents is compared when they are decoded.
        """
        from sddit.data.references import SampleFacts, mismatches, read_reference_file, unchecked

        _, height, width = facts.image
        samples = SampleFacts(None if facts.is_latent else (height, width), facts.crop, facts.fingerprint)
        files = {"inception": self.weights_sha256} if self.weights_sha256 else {}
        reference = read_reference_file(Path(self.reference))
        return list(mismatches(reference, samples, files, where=where)), unchecked(reference, samples, files)

    def _files(self) -> list[tuple[str, str]]:
        """(key, path) of the files that are named."""
        return [(key, path) for key, path in (("weights", self.weights), ("reference", self.reference)) if path]


class PixelsParams(FeatureParams):
    """The image itself, averaged over a grid of 16x16 places: no network and no classes, for any data set."""

    @property
    def dimensions(self) -> int:
        return 3 * 16**2


def no_classifier(facts: DataFacts) -> list[Problem]:
    """Return the problem that no classifier was shipped for this data; none if one was."""
    assets = Path(__file__).parent / "assets"
    shipped = sorted(path.stem.removeprefix("classifier_") for path in assets.glob("classifier_*.json"))
    if facts.domain in shipped:
        return []
    return [
        Problem(
            "SD-T910",
            "no classifier was trained for this data set",
            where="evaluate.features",
            got=facts.domain or facts.source,
            expect=f"the data set {', '.join(shipped[:-1])} or {shipped[-1]}",
            fix='evaluate.features=["mobilenet"], or a plugin with a classifier of your own',
        )
    ]
