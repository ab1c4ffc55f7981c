"""Define the contracts of samplers and guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

from sddit.errors import error
from sddit.interfaces.params import Params


class SamplerParams(Params):
    """Settings that every sampler has. Levels are in variance-exploding coordinates."""

    steps: int = Field(18, ge=2, le=10_000, description="Noise levels on the way from the highest to zero.")
    sigma_min: float | None = Field(None, gt=0, description="Lowest noise level. Default: the schedule's.")
    sigma_max: float | None = Field(None, gt=0, description="Highest noise level. Default: the schedule's.")
    grid: str = Field(
        "edm",
        description="Spacing of the levels: edm (arXiv:2206.00364, eq. 5), log, native (even in the schedule's own t), "
        "or another one that the schedule has.",
    )
    rho: float = Field(7.0, gt=0, description="Exponent of the edm grid.")

    @property
    def evaluations(self) -> int:
        """Network evaluations of one image."""
        return self.steps

    @property
    def needs_variance(self) -> bool:
        """Return whether the model must have learned a variance: a schedule of two outputs."""
        return False

    def noise_range(self, level_range: tuple[float, float]) -> tuple[float, float]:
        """Return the lowest and the highest level to sample, by default those of the schedule's `level_range`.

        Raises SdditError (SD-T902) if the lowest is not below the highest.
        """
        low = level_range[0] if self.sigma_min is None else self.sigma_min
        high = level_range[1] if self.sigma_max is None else self.sigma_max
        if low < high:
            return low, high
        keys = [f"sampler.{key}" for key in ("sigma_min", "sigma_max") if getattr(self, key) is not None]
        raise error(
            "SD-T902",
            "sampling has no noise to remove: the lowest level is not below the highest",
            where=keys[0] if keys else "noise_schedule",
            got=f"sigma_min = {low:g}, sigma_max = {high:g}",
            expect=f"sigma_min < sigma_max; the schedule's own are {level_range[0]:g} and {level_range[1]:g}",
            fix=f"remove {' and '.join(keys)}" if keys else "",
        )


@dataclass(frozen=True, slots=True)
class SecondNetwork:
    """The trained weights of another network, with which a guidance rule compares that of the run."""

    run: str  # folder of a run or an export; empty: the run that is sampled
    weights: str = ""  # `student` or the label of an [ema]; empty: those that it samples with
    step: int | None = None  # of a checkpoint; None: the newest
    sha256: str = ""  # hash of the file; empty: not known


class GuidanceParams(Params):
    """Settings of a guidance rule."""

    @property
    def evaluations(self) -> int:
        """Evaluations of the run's own network for one guided prediction."""
        return 1

    @property
    def second_network(self) -> SecondNetwork | None:
        """Return the network that the rule is built with, as `second`, and evaluates once for each prediction."""
        return None

    def with_second_network(self, found: SecondNetwork) -> Self:
        """Return the settings with the label, step and hash that were found for `second_network`."""
        return self

    @property
    def needs_null_label(self) -> bool:
        """Return whether the model must have been trained with dropped labels."""
        return False

    @property
    def heads(self) -> tuple[str, ...]:
        """Return the auxiliary heads of the backbone that the rule reads: `Prediction.heads`."""
        return ()


Denoise = Callable[["Tensor", float], "Prediction"]
"""(x [B, C, H, W], sigma) -> Prediction: one network, labels and guidance included."""


@dataclass(slots=True)
class Prediction:
    """An estimate of the clean image."""

    x0: Tensor  # [B, C, H, W]
    extra: Tensor | None = None  # the variance fraction, where the model has one
    heads: dict[str, Tensor] = field(default_factory=dict)  # x0 of further heads


class Denoiser(Protocol):
    """A trained network seen as D(x; sigma, labels) in variance-exploding coordinates."""

    num_classes: int

    def __call__(self, x: Tensor, sigma: float, labels: Tensor) -> Prediction: ...


class Guidance(Protocol):
    """Combine a denoiser and labels into one `Denoise`.

    Built with `schedule`, that of the model, and with `second`, a `Denoiser`, if its params name a `second_network`.
    """

    def __call__(self, denoiser: Denoiser, labels: Tensor) -> Denoise: ...


class Sampler(Protocol):
    """Sample x_0 from x_T at sigmas[0]. `sigmas` decreases strictly and ends with 0; the state is float64.

    Built with `schedule`, that of the model: a sampler that works in the schedule's own coordinates asks it for them.
    """

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,  # [B, C, H, W] float64, of standard deviation sigmas[0]
        sigmas: Sequence[float],
        *,
        noise: Callable[[int], Tensor],  # step -> unit noise [B, C, H, W] keyed by image
        callback: Callable[[int, Tensor], None] | None = None,  # (step, x)
    ) -> Tensor: ...
