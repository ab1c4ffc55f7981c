"""Declare what a component may read of the recipe it is used in. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sddit.interfaces.backbone import BackboneParams
from sddit.interfaces.component import Selected
from sddit.interfaces.dataset import DataFacts, DatasetParams
from sddit.interfaces.features import FeatureParams
from sddit.interfaces.loss import LossParams
from sddit.interfaces.noise_schedule import NoiseScheduleParams
from sddit.interfaces.pair_sampler import PairSamplerParams, ViewSpec
from sddit.interfaces.params import Shapes
from sddit.interfaces.sampler import SamplerParams


class TrainView(Protocol):
    """The part of `[train]` that components may read."""

    @property
    def steps(self) -> int: ...


class RecipeView(Protocol):
    """The recipe as `check`, `idle` and `warnings` of a component see it. Read-only.

    A slot has `.component` (its name and plugin) and `.params` (its settings).
    """

    @property
    def backbone(self) -> Selected[BackboneParams]: ...
    @property
    def noise_schedule(self) -> Selected[NoiseScheduleParams]: ...
    @property
    def pair_sampler(self) -> Selected[PairSamplerParams]: ...
    @property
    def dataset(self) -> Selected[DatasetParams]: ...
    @property
    def sampler(self) -> Selected[SamplerParams]: ...
    @property
    def losses(self) -> Mapping[str, Selected[LossParams]]:
        """Every loss by label, including those of constant weight 0."""

    @property
    def active_losses(self) -> Mapping[str, Selected[LossParams]]:
        """The losses that are built: all but those of constant weight 0."""

    @property
    def features(self) -> Mapping[str, Selected[FeatureParams]]:
        """The feature extractors that `[evaluate]` uses, by label or name."""

    @property
    def train(self) -> TrainView: ...
    @property
    def facts(self) -> DataFacts:
        """Image shape, classes and sizes of the data set."""

    @property
    def shapes(self) -> Shapes:
        """Input and output shapes of the backbone."""

    def views_of(self, loss: LossParams) -> Sequence[ViewSpec]:
        """Return the views that `loss` reads."""

    def key_of(self, loss: LossParams) -> str:
        """Return the key of `loss`, such as `loss.denoise`."""

    def has_heads(self) -> bool:
        """Return whether an active loss trains modules of its own. One that states no cost may."""
