"""Define the contract of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

from sddit.errors import SdditError, error
from sddit.interfaces.facts import DataFacts
from sddit.interfaces.params import Params

Split = Literal["train", "test"]


class EncodedImages(NamedTuple):
    """The images that a data set of latents was encoded from, in the same splits and order."""

    dataset: str  # qualified name of their data set
    settings: Mapping[str, Any]  # as a recipe has them
    fingerprint: str  # that it must have
    domain: str  # as of `DataFacts`


class DatasetParams(Params):
    """Settings of a data set, with the keys that every data set has."""

    label_drop: float = Field(
        0.1, ge=0, le=1, description="Probability that a label is replaced by the null label in training."
    )
    flip: bool = Field(False, description="Mirror each training image with probability one half.")
    normalize: Literal["range", "standard"] = Field(
        "range", description="range: images in [-1, 1]; standard: shifted and scaled per channel to mean 0 and std 0.5."
    )

    balanced: bool = Field(
        False,
        description="Train on every class equally often, also on those with fewer images.",
        json_schema_extra={"omit_default": True},
    )

    @classmethod
    def reads(cls, source: Path) -> bool:
        """Return whether a command that is given the path of images, such as `sddit-run reference`, reads them as this
        data set.

        Such a data set has the keys `path`, `size`, `labels` and `holdout`.
        """
        return False

    def facts(self) -> DataFacts:
        """Return shape, classes, sizes, fingerprint, mean and std. Raises SdditError for missing or unusable data."""
        raise NotImplementedError

    def declared_facts(self) -> DataFacts | None:
        """Return what the recipe declares of data that do not exist yet; None: they exist, or it declares nothing.

        Only a plan uses it: `sddit-run -n`.
        """
        return None

    def targets(self) -> Mapping[str, tuple[int, int, int]]:
        """Return the features that the data have of each image, for losses: {name: (E, h, w)}. None by default.

        Its data set is then a `TargetDataset`.
        """
        return {}

    def encoded_images(self) -> EncodedImages | None:
        """Return which images these latents were encoded from; None for pixels, and if it is not known."""
        return None

    @property
    def holds_images(self) -> bool:
        """Return whether there are images: without them a recipe can sample, but neither train nor score."""
        return True


class Dataset(Protocol):
    """One split of a data set, as the network sees it."""

    facts: DataFacts

    def __len__(self) -> int: ...

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return unflipped images [n, C, H, W] float32 and labels [n] int64, which are 0 for an unconditional set."""

    def to_images(self, x: Tensor) -> Tensor:
        """Return images for viewing: uint8 [n, 3, H, W]."""


@runtime_checkable
class LabelledDataset(Dataset, Protocol):
    """A data set that knows its labels without decoding images, which `balanced = true` needs."""

    def labels(self) -> Tensor:
        """Return the label of every image, [n] int64, as `fetch` returns them."""


@runtime_checkable
class DrawnDataset(Dataset, Protocol):
    """A data set that holds a normal distribution for each image, such as an encoder's posterior over its latent.

    `fetch` returns the means. Training draws x0 = mean + spread * noise at every visit of an image, keyed like all
    draws.
    """

    def spread(self, ids: Sequence[int]) -> Tensor:
        """Return standard deviations [n, C, H, W] float32, in the units of `fetch`."""


@runtime_checkable
class TargetDataset(Dataset, Protocol):
    """A data set that has features of each image, such as those of a frozen encoder, as targets for losses."""

    def targets(self, ids: Sequence[int], flipped: Tensor) -> Mapping[str, Tensor]:
        """Return the features of images, {name: [n, E, h, w] float32}, of a mirrored image where `flipped` [n]."""


@runtime_checkable
class KeepingDataset(Dataset, Protocol):
    """A data set that keeps images in memory after they are first fetched."""

    def keep_no_more(self) -> None:
        """Keep no further image: each will be fetched once."""


def small_split_error(size: int, batch: int) -> SdditError:
    """Return the error of a training split that is smaller than one batch (SD-D305)."""
    return error(
        "SD-D305",
        "the training split is smaller than one batch",
        where="train.batch",
        got=f"batch = {batch}, images = {size}",
        expect=f"a batch of at most {size}",
        fix=f"train.batch = {max(size, 1)}, or more images",
    )
