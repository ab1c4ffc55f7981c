"""Define the facts that components state before they are built, and those of the data. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sddit.errors import error
from sddit.value_schedules import Value, is_zero

Tap = str | float | int
"""Where tokens are read: `encoder`, `decoder`, a depth fraction such as 0.3, or a block number counted from 1."""

Network = Literal["student", "teacher"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one image, by formula. FLOPs count two per multiply-add, forward only, and include frozen layers."""

    parameters: int = 0  # trained
    flops: float = 0.0
    activations: float = 0.0  # numbers kept for the backward pass
    frozen: int = 0  # parameters that are not trained: they take memory, but no gradient and no optimizer state

    def __add__(self, other: Cost) -> Cost:
        parameters, flops = self.parameters + other.parameters, self.flops + other.flops
        return Cost(parameters, flops, self.activations + other.activations, self.frozen + other.frozen)

    def times(self, factor: float) -> Cost:
        """Return the cost of the same parameters, run `factor` times as often."""
        return Cost(self.parameters, self.flops * factor, self.activations * factor, self.frozen)


@dataclass(frozen=True, slots=True)
class Shapes:
    """Input and output shapes of a backbone."""

    image: tuple[int, int, int]  # C, H, W
    num_classes: int
    outputs: int = 1  # multiples of C in the network's output; 2: learned variance


@dataclass(frozen=True, slots=True)
class ColourMap:
    """A linear map from a latent, as its encoder returns it, to the mean colour of the pixels that it stands for.

    Colours are red, green and blue in [0, 1].
    """

    factor: int  # pixels along each side of an image for one place of a latent
    weights: tuple[tuple[float, ...], ...]  # [3][C]
    offset: tuple[float, ...]  # [3]
    r2: tuple[float, ...]  # [3] explained fraction of the variance of each colour, of images that were not fitted


@dataclass(frozen=True, slots=True)
class CodecFacts:
    """Facts of a codec, known without loading its weights."""

    channels: int  # C of a latent
    factor: int  # pixels along each side of an image for one place of a latent
    pixel_range: tuple[float, float] = (-1.0, 1.0)  # values of black and white as its network gets them
    scale: float = 1.0  # a cache holds for training: (latent - shift) * scale
    shift: float = 0.0
    size: int | None = None  # the only height and width of images that it takes; None: any multiple of `factor`
    encodes: bool = True  # False: it only decodes
    preview_only: bool = False  # its images are for viewing: scores of them are refused

    def latent_shape(self, image: Sequence[int]) -> tuple[int, int, int]:
        """Return C, h, w of the latents of images of shape (3, H, W). Raises SD-D353 for a shape that it refuses."""
        channels, height, width = image
        sides_fit = {height, width} == {self.size} if self.size else height % self.factor == width % self.factor == 0
        if channels != 3 or not sides_fit or not height or not width:
            sides = f"height and width {self.size}" if self.size else f"height and width multiples of {self.factor}"
            raise error(
                "SD-D353",
                "the codec does not take images of this shape",
                where="images",
                got=f"(C, H, W) = ({channels}, {height}, {width})",
                expect=f"3 channels, {sides}",
                fix="repeat a grey image to three channels" if channels == 1 else "crop the images to such a size",
            )
        return self.channels, height // self.factor, width // self.factor

    def image_shape(self, latent: Sequence[int]) -> tuple[int, int, int]:
        """Return (3, H, W) of the images of latents of shape (C, h, w). Raises SD-D353 for a shape that it refuses."""
        channels, height, width = latent
        image = 3, height * self.factor, width * self.factor
        if channels != self.channels or (self.size and {*image[1:]} != {self.size}):
            expect = f"C = {self.channels}" + (f", h = w = {self.size // self.factor}" if self.size else "")
            got = f"(C, h, w) = ({channels}, {height}, {width})"
            raise error("SD-D353", "the codec has latents of another shape", where="latents", got=got, expect=expect)
        return image


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Facts of a data set, known without decoding it. Values are of images scaled to [-1, 1], or of latents."""

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
    is_latent: bool = False  # the values are latents of an encoder, not pixels
    latent_scale: float | None = None  # the values are the encoder's latents times this; None: pixels, or not known
    encoder: str = ""  # name of that encoder; empty: pixels, or not known
    latent_shift: float = 0.0  # what was subtracted from the encoder's latents before that scale
    codec: str = ""  # qualified name of the codec that made the latents; empty: pixels, or made elsewhere
    codec_sha256: str = ""  # hash of its weights; empty: none, or not known
    colours: ColourMap | None = None  # for previews of latents; None: pixels, or not fitted
    crop: str = ""  # how images were cut to their size, by name: `adm` is the centre crop of ADM; empty: not known
    licence: str = ""  # of the images, as the user states it; empty: not stated

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def gives_images(self) -> bool:
        """Return whether samples can be shown and scored as images: pixels, or latents with a decoder."""
        return not self.is_latent or bool(self.decoder)


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """A view that a pair sampler makes, known before anything is built."""

    name: str
    network: Network = "student"
    mask_ratio: Value = 0.0  # fraction of tokens that are hidden
    mask_spread: float = 0.0  # maximum additional fraction: each step draws a part of it

    @property
    def is_masked(self) -> bool:
        """Return whether any token is hidden at any time."""
        return self.mask_spread > 0 or not is_zero(self.mask_ratio)


@dataclass(frozen=True, slots=True)
class Want:
    """The outputs of one view that a loss reads."""

    output: bool = False  # the network's own output and the x0 made of it
    taps: tuple[Tap, ...] = ()  # tokens on the way
    cls: bool = False  # the class token of those taps
    heads: tuple[str, ...] = ()  # auxiliary heads of the backbone: `Outputs.heads`, which come with the output

    def __post_init__(self) -> None:
        if isinstance(self.taps, str):
            raise TypeError(f"taps is a text; a tuple of one has a comma: taps=({self.taps!r},)")
        if not isinstance(self.taps, tuple) or not all(isinstance(tap, (str, float, int)) for tap in self.taps):
            raise TypeError(f"taps is {self.taps!r}, not a tuple of names, depth fractions and block numbers")

    def __or__(self, other: Want) -> Want:
        taps = (*self.taps, *(tap for tap in other.taps if tap not in self.taps))
        heads = (*self.heads, *(head for head in other.heads if head not in self.heads))
        return Want(self.output or other.output, taps, self.cls or other.cls, heads)


@dataclass(frozen=True, slots=True)
class Needs:
    """The outputs that a loss reads of its student views and, if any, of its teacher views."""

    student: Want = Want()
    teacher: Want | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.student, Want) or not isinstance(self.teacher, Want | None):
            raise TypeError(f"Needs({self.student!r}, {self.teacher!r}) is not made of Want(...); no teacher is None")
