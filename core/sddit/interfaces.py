"""The contracts between the core and every component: what a plugin author reads first.

Two halves. The *faces* are settings classes: they answer what a component needs, gives and costs, and import no torch,
so that a recipe can be listed, checked and priced at once. The *runtime* contracts are what is built from them.

Letters in shapes: B batch, C channels, H W image or latent, N tokens, K kept tokens, D width, d head width.
t grows with noise in every schedule; sigma is the noise level in variance-exploding coordinates (x / alpha, sigma / alpha).
The null label is `num_classes`, whatever the number of classes; an unconditional model has 0 classes and only that label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from sddit.errors import Problem
from sddit.values import Moment, Value, bounded, is_zero

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sddit.recipes.recipe import Recipe
    from sddit.registry import Component

Tap = str | float | int
"""Where tokens are read: `encoder`, `decoder`, a depth share such as 0.3, or a block number counted from 1."""

Network = Literal["student", "teacher"]

# --------------------------------------------------------------------------------------------------------------------
# Faces: settings, torch-free
# --------------------------------------------------------------------------------------------------------------------


class Params(BaseModel):
    """Settings of one component: strict types, no unknown keys, finite numbers, every field described."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def check(self, recipe: Recipe) -> Iterable[Problem]:
        """Rules between this component and the other slots of the recipe. None by default."""
        return ()

    def idle(self, recipe: Recipe) -> Iterable[str]:
        """Names of own keys that have no effect in this recipe: a person who sets one of them is told. None by default."""
        return ()

    def warnings(self, recipe: Recipe) -> Iterable[str]:
        """What this recipe allows and nobody can mean, one sentence each that names the keys. None by default."""
        return ()


@dataclass(frozen=True, slots=True)
class Cost:
    """What one image costs, by formula. FLOPs count two per multiply-add, forward only."""

    parameters: int = 0
    flops: float = 0.0
    activations: float = 0.0  # numbers kept for the backward pass

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.flops + other.flops,
            self.activations + other.activations,
        )

    def times(self, factor: float) -> Cost:
        """The same parameters, run `factor` times as often."""
        return Cost(self.parameters, self.flops * factor, self.activations * factor)


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a backbone is built for. `outputs` counts multiples of C in the network's output (2: learned variance)."""

    image: tuple[int, int, int]  # C, H, W
    num_classes: int
    outputs: int = 1


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """A view that a pair sampler makes, known before anything is built."""

    name: str
    network: Network = "student"
    mask_ratio: Value = 0.0  # share of tokens hidden from the sparse span
    mask_spread: float = 0.0  # a further share, of which each step hides a random part

    @property
    def hides(self) -> bool:
        """Whether any token is hidden at any time."""
        return self.mask_spread > 0 or not is_zero(self.mask_ratio)


@dataclass(frozen=True, slots=True)
class Want:
    """What a loss term reads from the outputs of one view."""

    output: bool = False  # the network's own output and the x0 made of it
    taps: tuple[Tap, ...] = ()  # tokens on the way
    cls: bool = False  # the class token of those taps

    def __or__(self, other: Want) -> Want:
        taps = (*self.taps, *(tap for tap in other.taps if tap not in self.taps))
        return Want(self.output or other.output, taps, self.cls or other.cls)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a loss term reads from its student views and, if any, from its teacher views."""

    student: Want = Want()
    teacher: Want | None = None


class BackboneParams(Params):
    """Face of a backbone."""

    def grid(self, shapes: Shapes) -> tuple[int, int]:
        """Tokens along H and W."""
        raise NotImplementedError

    def width(self, tap: Tap) -> int:
        """D of the tokens at `tap`. Raises ValueError for a tap that does not exist, with the ones that do."""
        raise NotImplementedError

    @property
    def has_cls(self) -> bool:
        """Whether taps carry a class token."""
        return False

    @property
    def maskable(self) -> bool:
        """Whether a view may hide tokens from this backbone."""
        return False

    @property
    def needs_bias(self) -> bool:
        """Whether its attention adds a bias, which not every kernel serves."""
        return False

    def cost(self, shapes: Shapes, *, kept: int, taps: Sequence[Tap] = (), output: bool = True) -> Cost | None:
        """One image forward with `kept` visible tokens, cut after the deepest tap if `output` is False."""
        return None


class NoiseScheduleParams(Params):
    """Face of a noise schedule. `sigma_data` may be the word `measured`; the recipe then holds the number."""

    @property
    def outputs(self) -> int:
        """Multiples of C that the network must give: 1, or 2 with a learned variance."""
        return 1

    @property
    def t_range(self) -> tuple[float, float]:
        """The lowest and highest t at which the network may be asked."""
        raise NotImplementedError

    @property
    def level_range(self) -> tuple[float, float]:
        """The same two in variance-exploding coordinates; as it stands, for schedules whose t is sigma."""
        return self.t_range

    @property
    def grids(self) -> tuple[str, ...]:
        """What `sampler.grid` may say: `edm` and `log` are the same for every schedule, the others its own."""
        return ("edm", "log", "native")


class PairSamplerParams(Params):
    """Face of a pair sampler."""

    def views(self) -> tuple[ViewSpec, ...]:
        """The views it makes, students first."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Monitor:
    """How to read one diagnostic of a loss term: what a report prints beside its curve."""

    name: str  # as the term logs it
    title: str
    healthy: str  # what a good run looks like
    low: float | None = None  # an alarm below
    high: float | None = None  # an alarm above
    reference: float | None = None  # a value to draw as a line, such as ln K


class LossParams(Params):
    """Face of a loss term, with the keys that every term has."""

    weight: Annotated[Value, bounded(0)] = Field(
        1.0,
        description="Weight of this term: a value schedule. Constant 0 leaves the term, and what only it needs, out.",
    )
    views: tuple[str, ...] = Field((), strict=False, description="Names of the views it reads; none means all of them.")
    window: tuple[float, float] | None = Field(
        None, strict=False, description="Noise interval [low, high] of the student's t outside which a sample counts 0."
    )
    until: Moment = Field(1.0, description="When the term ends: steps, or a share of the run. 1.0: never.")

    def needs(self) -> Needs:
        """What it reads."""
        raise NotImplementedError

    def cost(self, backbone: BackboneParams, shapes: Shapes, view: ViewSpec, kept: int) -> Cost | None:
        """Training heads and other work on one view of one image; the same head is counted once by the core.

        None is "not stated", and then so are the sums it would be part of: a term without heads says `Cost()`.
        """
        return None

    def monitors(self) -> tuple[Monitor, ...]:
        """The diagnostics it logs that tell health from trouble."""
        return ()

    @property
    def couples_samples(self) -> bool:
        """Whether the term is a scalar of the whole batch, rather than one value per sample [B]."""
        return False


class AttentionParams(Params):
    """Face of an attention kernel: what it can serve."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Device types it runs on."""
        return ("cpu", "cuda")

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Precisions it computes in."""
        return ("fp32", "bf16", "fp64")

    @property
    def takes_bias(self) -> bool:
        """Whether an additive bias per head is served."""
        return False

    @property
    def takes_groups(self) -> bool:
        """Whether groups that may not see each other are served."""
        return False

    @property
    def backward_devices(self) -> tuple[str, ...]:
        """Device types on which it has a backward pass."""
        return self.devices


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What is known of a data set without decoding it for training. Values are of images scaled to [-1, 1] (or latents)."""

    image: tuple[int, int, int]  # C, H, W as the network sees it
    class_names: tuple[str, ...]  # empty: unconditional
    train_size: int
    test_size: int
    fingerprint: str  # changes when an image, a label or the split does
    mean: tuple[float, ...]  # per channel, of the training split
    std: tuple[float, ...]  # per channel, of the training split
    source: str  # where it came from, for the first lines of a run
    decoder: str = ""  # name of a latent decoder; empty: these are pixels or there is none
    domain: str = ""  # what the images show, by name, so that a classifier of it is found; empty: unknown

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class DatasetParams(Params):
    """Face of a data set, with the keys that every data set has."""

    label_drop: float = Field(
        0.1, ge=0, le=1, description="Chance that a label is replaced by the null label in training."
    )
    flip: bool = Field(False, description="Mirror each training image with chance one half.")
    normalize: Literal["range", "standard"] = Field(
        "range", description="range: images in [-1, 1]; standard: shifted and scaled per channel to mean 0 and std 0.5."
    )

    def facts(self) -> DataFacts:
        """Shape, classes, sizes, fingerprint, mean and std. Raises SdditError if the data is missing or unusable."""
        raise NotImplementedError

    @property
    def holds_images(self) -> bool:
        """Whether there is anything behind the facts: without images a recipe samples, and neither trains nor scores."""
        return True


class SamplerParams(Params):
    """Face of a sampler, with the keys that every sampler has. Levels are in variance-exploding coordinates."""

    steps: int = Field(18, ge=2, le=10_000, description="Noise levels on the way from the highest to zero.")
    sigma_min: float | None = Field(None, gt=0, description="Lowest level; left out: the schedule's own.")
    sigma_max: float | None = Field(None, gt=0, description="Highest level; left out: the schedule's own.")
    grid: str = Field(
        "edm",
        description="Spacing of the levels: edm (arXiv:2206.00364, eq. 5), log, native (even in the schedule's own t), or "
        "a further one that the schedule has.",
    )
    rho: float = Field(7.0, gt=0, description="Exponent of the edm grid.")

    @property
    def evaluations(self) -> int:
        """Network evaluations of one image."""
        return self.steps

    @property
    def needs_variance(self) -> bool:
        """Whether the model must have learned a variance: a schedule of two outputs."""
        return False


class GuidanceParams(Params):
    """Face of a guidance rule."""

    @property
    def evaluations(self) -> int:
        """Network evaluations for one guided one."""
        return 1

    @property
    def needs_null_label(self) -> bool:
        """Whether the model must have been trained with dropped labels."""
        return False


class OptimizerParams(Params):
    """Face of an optimizer, with the keys that every optimizer has."""

    lr: Annotated[Value, bounded(0)] = Field(1e-4, description="Learning rate: a value schedule.")
    warmup: Moment = Field(
        0, description="The learning rate grows linearly from 0 until here: steps, or a share of the run."
    )
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient; left out: no clipping.")
    clip_scope: Literal["all", "each"] = Field(
        "all", description="Of what the norm is taken: all gradients as one, or each parameter's by itself (DINO)."
    )
    head_lr: float = Field(1.0, ge=0, description="Factor on the learning rate of the losses' own heads.")

    @property
    def state_per_parameter(self) -> int:
        """Numbers kept per trained number."""
        return 0


class FeatureParams(Params):
    """Face of a feature extractor for metrics."""

    @property
    def dimensions(self) -> int:
        """Width of a feature vector."""
        raise NotImplementedError

    @property
    def own_figures(self) -> tuple[str, ...]:
        """Names of the figures it measures besides the common ones: `class_accuracy` if it knows classes, and a
        `FigureExtractor`'s own."""
        return ()

    def fingerprinted(self) -> Self:
        """These settings with the hash of each file that they name: `weights` goes with a key `weights_sha256`.

        The hash is part of the run id, the path beside it is not.
        """
        return self


class TrackerParams(Params):
    """Face of a tracker."""


# --------------------------------------------------------------------------------------------------------------------
# Runtime
# --------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Batch:
    """One training batch, before noise."""

    x0: Tensor  # [B, C, H, W]
    labels: Tensor  # [B] int64 after label drop; num_classes is the null label
    true_labels: Tensor  # [B] int64 before it
    ids: Tensor  # [B] int64, index of the image in its split
    flipped: Tensor  # [B] bool
    extras: dict[str, Tensor] = field(default_factory=dict)


class Draws(Protocol):
    """Keyed randomness: a pure function of (seed, purpose, step, sample). The order of calls means nothing.

    A component's own purposes are named `<plugin>/<component>/<purpose>`. With scope="step" one value is drawn for the
    whole batch, equal on every rank; the result then has shape [1, *shape] and lies on the CPU, where it may decide shapes.
    """

    def normal(self, purpose: str, shape: Sequence[int] = (), *, scope: Literal["sample", "step"] = "sample") -> Tensor:
        """Standard normal numbers, [B, *shape] float32."""
        ...

    def uniform(
        self, purpose: str, shape: Sequence[int] = (), *, scope: Literal["sample", "step"] = "sample"
    ) -> Tensor:
        """Uniform numbers in the open interval (0, 1), [B, *shape] float64."""
        ...


@dataclass(slots=True, kw_only=True)
class View:
    """One noisy look at the batch, and which network sees it."""

    network: Network
    x: Tensor  # [B, C, H, W] noisy image
    t: Tensor  # [B] noise level in the schedule's own time
    labels: Tensor  # [B] int64
    x0: Tensor  # [B, C, H, W] clean target
    noise: Tensor  # [B, C, H, W] the unit noise in x
    visible: Tensor | None = None  # [B, K] int64 indices of tokens that are not hidden, rising; None: all
    groups: Tensor | None = None  # [B, N] int64, tokens of different groups do not attend to each other
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Tokens:
    """Tokens read at a tap."""

    patch: Tensor  # [B, n, D]
    index: Tensor | None = None  # [B, n] positions of those tokens; None: all N in order
    cls: Tensor | None = None  # [B, D], never inside `patch`

    def at(self, index: Tensor | None) -> Tensor:
        """The patch tokens at positions `index` [B, K] (None: all), [B, K, D]. They must be among the tokens read."""
        if index is self.index:
            return self.patch
        if index is None or self.index is not None:
            raise ValueError("tokens were read at other positions than the ones asked for")
        return self.patch.gather(1, index[:, :, None].expand(-1, -1, self.patch.shape[-1]))


@dataclass(slots=True, kw_only=True)
class Outputs:
    """What a network gave for one view. `raw` and `x0` are None where only taps were asked for."""

    raw: Tensor | None = None  # [B, C, H, W] float32 or wider, the network's own output R
    x0: Tensor | None = None  # [B, C, H, W] c_skip x + c_out R
    extra: Tensor | None = None  # [B, C, H, W] channels beyond C: the variance fraction
    heads: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # further outputs: (raw, x0)
    taps: dict[Tap, Tokens] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Context:
    """What a pair sampler or a loss term may know of the run around it."""

    step: int
    total_steps: int
    schedule: NoiseSchedule
    draws: Draws
    num_classes: int
    averaged: Mapping[str, nn.Module] = field(default_factory=dict)  # the teacher's copy of the term's own modules
    gather: Callable[[Tensor], Tensor] = lambda x: x  # [B, ...] of this rank -> of all ranks
    mean: Callable[[Tensor], Tensor] = lambda x: x  # mean over all ranks

    @property
    def progress(self) -> float:
        """Share of the planned steps that are done."""
        return self.step / self.total_steps


@dataclass(frozen=True, slots=True)
class Scalings:
    """D(x) = c_skip x + c_out F(c_in x, c_noise): EDM (arXiv:2206.00364), eq. 7. Each is [B]."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class NoiseSchedule(Protocol):
    """x_t = alpha(t) x0 + sigma(t) eps, and the preconditioning that says what the network's output means."""

    outputs: int  # multiples of C in the network's output
    sigma_range: tuple[float, float]  # lowest and highest level for sampling, variance-exploding

    def t_from_uniform(self, u: Tensor) -> Tensor:
        """Training noise levels [B] from uniform numbers [B] in (0, 1)."""
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale, same shape as t."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale, same shape as t."""
        ...

    def perturb(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """alpha(t) x0 + sigma(t) noise, [B, C, H, W]."""
        ...

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        """The t at which sigma(t) / alpha(t) equals `sigma`."""
        ...

    def snap(self, sigma: Tensor) -> Tensor:
        """The nearest level that was trained; the identity for a continuous schedule."""
        ...

    def share(self, t: Tensor) -> Tensor:
        """Where t lies between no noise, 0, and the most, 1: t / T of rules that speak of it. Same shape as t."""
        ...

    def scalings(self, t: Tensor) -> Scalings:
        """The preconditioning at t [B]."""
        ...

    def grid(self, steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
        """`steps` falling levels and a final 0, as Python floats made in float64, variance-exploding."""
        ...


class Backbone(Protocol):
    """The network F. Its output heads are exported with it."""

    blocks: nn.ModuleList  # in depth order

    def __call__(
        self,
        x: Tensor,  # [B, C, H, W], already scaled by c_in
        c_noise: Tensor,  # [B]
        labels: Tensor,  # [B]
        *,
        taps: Sequence[Tap] = (),
        output: bool = True,
        visible: Tensor | None = None,  # [B, K]
        groups: Tensor | None = None,  # [B, N]
    ) -> tuple[Tensor | None, dict[str, Tensor], dict[Tap, Tokens]]:
        """(raw [B, outputs * C, H, W] or None, further heads, taps)."""
        ...

    def truncate(self, taps: Sequence[Tap]) -> None:
        """Drop everything that is not needed to reach `taps`: a teacher carries no decoder."""
        ...

    def set_checkpointing(self, on: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        ...

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Give one parameter its initial values, from a generator keyed by the seed and this name. Terms may have it too."""
        ...


class PairSampler(Protocol):
    """Which views of a batch exist."""

    def __call__(self, batch: Batch, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> dict[str, View]:
        """The views by name, in the order of `PairSamplerParams.views`."""
        ...


class Loss(Protocol):
    """One labelled term: an nn.Module, normally a subclass of `sddit.terms.LossTerm`.

    It may own training heads and buffers. Buffers change only in `after_step`, from statistics staged in forward, so
    that a skipped step changes nothing. `averaged` names the submodules of which the teacher keeps a moving average.
    """

    averaged: tuple[str, ...]

    def __call__(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        """One value per sample [B], or a scalar if its params say `couples_samples`."""
        ...

    def after_step(self, ctx: Context) -> None:
        """Called once after each optimizer step that was taken."""
        ...

    def staged(self) -> Iterable[Tensor]:
        """What forward staged for `after_step`, on the device. A step is not taken where any of it is not finite."""
        ...

    def discard(self) -> None:
        """Forget what forward staged: the step is not taken."""
        ...

    def diagnostics(self) -> dict[str, Tensor]:
        """Scalars for the log since the last call, on the device."""
        ...


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
    """Turns a denoiser and labels into one `Denoise`. Built with `schedule`, that of the model."""

    def __call__(self, denoiser: Denoiser, labels: Tensor) -> Denoise: ...


class Sampler(Protocol):
    """From x_T at sigmas[0] to x_0. `sigmas` falls strictly and ends with 0; the state is float64.

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


class Attention(Protocol):
    """softmax(q k^T / sqrt(d) + bias) v."""

    def __call__(
        self,
        q: Tensor,  # [B, heads, N, d]
        k: Tensor,
        v: Tensor,
        *,
        bias: Tensor | None = None,  # [heads, N, N] or [B, heads, N, N]
        groups: Tensor | None = None,  # [B, N]
    ) -> Tensor: ...


class Dataset(Protocol):
    """One split of a data set, as the network sees it."""

    facts: DataFacts

    def __len__(self) -> int: ...

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images [n, C, H, W] float32 and labels [n] int64 (0 for an unconditional set), unflipped."""
        ...

    def to_images(self, x: Tensor) -> Tensor:
        """What a person looks at: uint8 [n, 3, H, W]."""
        ...


@runtime_checkable
class DrawnDataset(Dataset, Protocol):
    """A data set that holds a normal distribution for each image, such as an encoder's posterior over its latent.

    `fetch` gives the means. Training draws x0 = mean + spread * noise anew at every visit of an image, keyed like every
    other draw.
    """

    def spread(self, ids: Sequence[int]) -> Tensor:
        """Standard deviations [n, C, H, W] float32, in the units of `fetch`."""
        ...


NOTHING: Mapping[str, Any] = MappingProxyType({})
"""No argument of a published constructor is given."""


class WeightDescription(Protocol):
    """A published network in our terms."""

    @property
    def backbone(self) -> Mapping[str, Any]:
        """Settings of the backbone that offers the layout."""
        ...

    @property
    def shapes(self) -> Shapes:
        """What it is built for."""
        ...

    @property
    def noise_schedule(self) -> tuple[str, Mapping[str, Any]] | None:
        """Name and settings of the schedule that says what its output means; None: not one of ours."""
        ...

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The further tables of a recipe that trains and samples as was published: views, losses, sampler, guidance."""
        ...


class WeightFormat(Protocol):
    """A published layout of weights: names, orders and shapes of one backbone's tensors, there and back.

    A backbone offers its layouts as `formats={layout: "module:attribute"}`; `sddit-run import`, `export` and `sddit.load`
    go through them. `config` is what the published network's constructor takes, under the published names. For any
    network that the layout can hold, `describe(config(params, shapes, schedule))` is that network again, and so are its tensors
    after `to_theirs` and `to_ours`.
    """

    files: tuple[str, str]  # where an exported folder holds the config (JSON) and the weights (safetensors)
    note: str  # what a person who loads such a folder elsewhere should know; empty: nothing
    idle: tuple[str, ...]  # further arguments of the constructor, which leave the network as the others make it

    def describe(self, config: Mapping[str, Any]) -> WeightDescription:
        """The network that a constructor would make. Raises KeyError for a missing argument, ValueError for a wrong one."""
        ...

    def config(self, params: Any, shapes: Shapes, schedule: Mapping[str, Any]) -> dict[str, Any]:
        """The way back: all arguments, as JSON. Raises ValueError, saying why, for a network that has no place in the layout.

        `schedule` are the settings of the noise schedule: some layouts state one of them among the arguments.
        """
        ...

    def infer(
        self, state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(the arguments that names and shapes tell, guesses of others: what is usual for a network of that size).

        `given` are arguments that somebody stated. Where tensors may be told of in two ways (an MLP of 118 rows on 44 has
        the ratio 2.7, and 118 / 44), the one that was given is told; where they contradict it, what they tell.
        Raises KeyError for tensors that are not of this layout.
        """
        ...

    def to_ours(self, state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> dict[str, Tensor]:
        """Our names, `given` as for `infer`. The result loads strictly, fixed tables included. Raises KeyError for an
        unknown name."""
        ...

    def to_theirs(self, state: Mapping[str, Tensor], params: Any, shapes: Shapes) -> dict[str, Tensor]:
        """Their names, of the parameters of our backbone."""
        ...


class FeatureExtractor(Protocol):
    """Images to vectors, for metrics. `classes` is None where the extractor is no classifier."""

    title: str  # how figures name it, such as "MobileNetV2"
    dimensions: int

    def features(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> float32 [n, dimensions]."""
        ...

    def classes(self, images: Tensor) -> Tensor | None:
        """uint8 [n, 3, H, W] -> the class it sees [n], or None."""
        ...


@runtime_checkable
class FigureExtractor(FeatureExtractor, Protocol):
    """A feature extractor that measures figures of its own besides."""

    def own_figures(self, images: Tensor) -> Mapping[str, float]:
        """All samples, uint8 [n, 3, H, W] -> figures by name. One that cannot be measured is left out."""
        ...


class Tracker(Protocol):
    """Where metrics go besides the run's own log."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Optimizer(Protocol):
    """Builds a torch optimizer. `groups` are dicts with `params`, `lr_scale` and `head`: whether a loss owns them."""

    def __call__(self, groups: Sequence[Mapping[str, Any]], device: torch.device) -> torch.optim.Optimizer: ...


# --------------------------------------------------------------------------------------------------------------------
# Checks: what `sddit-run verify` measures on the machine it runs on
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number, beside the bound it must keep. A NaN keeps none."""

    what: str  # what was measured: "order of convergence, distance from 2"
    value: float
    tolerance: float
    relation: Literal["<=", ">="] = "<="

    @property
    def holds(self) -> bool:
        """Whether the number keeps its bound."""
        return self.value >= self.tolerance if self.relation == ">=" else self.value <= self.tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    """What a check may know of the machine and of the call."""

    component: Component[Any] | None = None  # the one whose check it is; None for a check of the core
    device: Literal["cpu", "cuda"] = "cpu"
    full: bool = False  # take the time it needs
    fixtures: tuple[Path, ...] = ()  # folders in which numbers of published implementations may lie


class NotHereError(Exception):
    """Raised by a check for want of something: a file, a device, a compiler. It is then listed as skipped, not as passed."""


Check = Callable[[CheckContext], Iterable[Measurement]]
"""A numerical check, registered as `checks={"what it shows": "module:function"}`. It may yield as it goes."""
