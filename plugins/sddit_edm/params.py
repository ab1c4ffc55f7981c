"""Settings of the EDM and flow schedules and of the denoising loss. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sddit.diffusion.time_sampling import TimeSampledParams
from sddit.errors import Problem
from sddit.interfaces import Cost, LossParams, Monitor, Needs, RecipeView, Want

LATER: dict[str, Any] = {"omit_default": True}
"""Mark of the keys that later versions added, see `sddit.interfaces.params.Mark`."""


class EDMParams(TimeSampledParams):
    """Settings of the `edm` schedule, in which t is sigma itself."""

    p_mean: float = Field(-1.2, description="Mean of ln sigma in training.")
    p_std: float = Field(1.2, gt=0, description="Standard deviation of ln sigma in training.")
    sigma_data: Annotated[float, Field(gt=0)] | Literal["measured"] = Field(
        0.5, description="Standard deviation of the data; `measured`: computed from the training split."
    )
    sigma_min: float = Field(0.002, gt=0, description="Minimum noise level in sampling.")
    sigma_max: float = Field(80.0, gt=0, description="Maximum noise level in sampling.")

    @property
    def t_range(self) -> tuple[float, float]:
        return (self.sigma_min, self.sigma_max)

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return () if self.time_sampling is None else ("p_mean", "p_std")

    @model_validator(mode="after")
    def _rises(self) -> EDMParams:
        if self.sigma_min >= self.sigma_max:
            raise ValueError("sigma_min must be below sigma_max")
        return self


class FlowParams(TimeSampledParams):
    """Settings of the `flow` schedule, x = (1 - t) x0 + t eps."""

    t_sampling: Literal["uniform", "logit_normal"] = Field(
        "uniform",
        description="Distribution of training times: uniform in (0, 1), or ln(t / (1 - t)) normal (arXiv:2403.03206).",
    )
    logit_mean: float = Field(0.0, description="Mean of ln(t / (1 - t)) in training.")
    logit_std: float = Field(1.0, gt=0, description="Standard deviation of ln(t / (1 - t)) in training.")
    t_min: float = Field(0.001, gt=0, lt=1, description="Minimum time in sampling.")
    t_max: float = Field(0.999, gt=0, lt=1, description="Maximum time in sampling; at 1 no image content is left.")
    prediction: Literal["velocity", "x0", "noise"] = Field(
        "velocity",
        description="Meaning of the network's output: the velocity eps - x0 (SiT), the clean image x0 "
        "(arXiv:2511.13720), or the noise eps. The space of the loss is a key of the loss.",
        json_schema_extra=LATER,
    )
    t_floor: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="With prediction x0 or noise: minimum of t and of 1 - t where the loss divides by them, so that no "
        "error is multiplied by more than 1 / t_floor. 0.05 is published (arXiv:2511.13720). Sampling has no floor.",
        json_schema_extra=LATER,
    )
    direction: Literal["noise", "data"] = Field(
        "noise",
        description="Time input of the network, and sign of a predicted velocity. noise: input t, velocity eps - x0, "
        "as in REPA; data: input 1 - t, velocity x0 - eps, as in SiT.",
    )
    time_scale: float = Field(
        1.0, gt=0, description="Factor on the network's time input; 1 in SiT and REPA, so that it is in [0, 1]."
    )

    @property
    def t_range(self) -> tuple[float, float]:
        return (self.t_min, self.t_max)

    @property
    def level_range(self) -> tuple[float, float]:
        return (self.t_min / (1 - self.t_min), self.t_max / (1 - self.t_max))

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        if self.prediction == "velocity":
            yield "t_floor"
        if self.time_sampling is not None:
            yield "t_sampling"
        if self.time_sampling is not None or self.t_sampling == "uniform":
            yield from ("logit_mean", "logit_std")

    @model_validator(mode="after")
    def _rises(self) -> FlowParams:
        if self.t_min >= self.t_max:
            raise ValueError("t_min must be below t_max")
        return self


class DenoisingParams(LossParams):
    """Settings of the `denoising` loss."""

    space: Literal["native", "x0", "eps", "noise", "v", "velocity"] = Field(
        "native",
        description="Quantity of the squared error: the network's output (native; EDM: lambda(sigma) times the error "
        "of x0), the clean image (x0), the noise (eps; noise is the same), v of arXiv:2202.00512, or the velocity "
        "eps - x0 of straight paths (velocity).",
    )
    weighting: Literal["none", "min_snr"] = Field(
        "none",
        description="none: the plain mean. min_snr (arXiv:2303.09556): the error of x0 times min(SNR, snr_gamma) in "
        "any space; for the noise this is min(SNR, snr_gamma) / SNR, for v min(SNR, snr_gamma) / (SNR + 1).",
    )
    snr_gamma: float = Field(5.0, gt=0, description="Maximum weight of the error of x0 with min_snr.")
    tokens: Literal["all", "visible"] = Field(
        "all", description="all: every token; visible: only tokens that the view does not hide."
    )
    head: str = Field(
        "",
        description="Auxiliary head of the backbone whose output is read, by name. Empty: the network's own output.",
        json_schema_extra=LATER,
    )
    target_head: str = Field(
        "",
        description="Auxiliary head whose prediction D_i moves the target of D away from it: x0 + target_scale (D - "
        "D_i), the bracket without gradient, so that the network learns the guided prediction (arXiv:2512.24176). "
        "Empty: the target is x0.",
        json_schema_extra=LATER,
    )
    target_scale: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="Factor w on that difference; the ideal network is then D_i + (x0 - D_i) / (1 - w), guidance of "
        "scale 1 / (1 - w). The default is our choice.",
        json_schema_extra=LATER,
    )

    @field_validator("space", mode="before")
    @classmethod
    def _one_name(cls, space: Any) -> Any:
        """Replace noise by eps, so that both names give one run id."""
        return "eps" if space == "noise" else space

    def needs(self) -> Needs:
        return Needs(student=Want(output=True, heads=self._heads))

    def monitors(self) -> tuple[Monitor, ...]:
        weaker = "above 1: the head is weaker than the output, so guidance away from it improves the output"
        ratio = Monitor("error_ratio", "Squared error of the head, relative to that of the output", weaker, low=1.0)
        small = "below 1: the output is moved away from the head by less than its own size"
        shift = Monitor("target_shift", "Squared shift of the target, relative to the target", small, high=1.0)
        return ((ratio,) if self.head else ()) + ((shift,) if self.target_head else ())

    def cost(self, *_: Any, **__: Any) -> Cost:
        """Return zero: no heads, and negligible arithmetic per pixel."""
        return Cost()

    @property
    def _heads(self) -> tuple[str, ...]:
        """The auxiliary heads that it reads."""
        return tuple(filter(None, (self.head, self.target_head)))

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        yield "snr_gamma" if self.weighting == "none" else "space"
        if not self.target_head:
            yield "target_scale"

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        known = recipe.backbone.params.head_tokens
        seen = [head for head in self._heads if known.get(head) == "visible"]
        if seen and self.tokens == "all" and any(view.is_masked for view in recipe.views_of(self)):
            yield Problem(
                "SD-R108",
                f"the auxiliary head {seen[0]!r} predicts no hidden tokens: its block does not get them",
                where=f"{recipe.key_of(self)}.tokens",
                got='"all" of a view that hides some',
                expect='"visible", or a head after the block at which hidden tokens return',
            )

    @model_validator(mode="after")
    def _differ(self) -> DenoisingParams:
        if self.target_head and self.target_head == self.head:
            raise ValueError("target_head is the head that is trained: the difference from it is 0")
        return self
