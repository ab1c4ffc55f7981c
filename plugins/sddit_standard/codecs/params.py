"""Define settings of the built-in codecs. Torch-free."""

from __future__ import annotations

import json
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any

from pydantic import Field

from sddit.errors import SdditError, error
from sddit.interfaces import PLACE, CodecFacts, CodecParams, DataFacts

ASSETS = Path(__file__).parent / "assets"
TAEF2_FILES = ("taef2_encoder.pth", "taef2_decoder.pth")


def missing_weights(path: Path, expect: str) -> SdditError:
    """Return the error SD-D351 for a file of weights that does not exist."""
    return error("SD-D351", "the weights of the codec are not there", where="codec.path", got=str(path), expect=expect)


class Taef2Params(CodecParams):
    """TAEF2, a small autoencoder with the latents of FLUX.2: 32 channels, 8 pixels to a place, no posterior."""

    path: str = Field(
        min_length=1,
        description="The folder with taef2_encoder.pth and taef2_decoder.pth, relative to the recipe.",
        json_schema_extra=PLACE,
    )

    def weight_files(self) -> tuple[Path, ...]:
        return tuple(Path(self.path) / name for name in TAEF2_FILES)

    def facts(self, data: DataFacts | None = None) -> CodecFacts:
        for file in self.weight_files():
            if not file.is_file():
                raise missing_weights(file, "the files of https://github.com/madebyollin/taesd")
        return CodecFacts(
            channels=32,
            factor=8,
            pixel_range=(0.0, 1.0),
            scale=1.0 if self.scale is None else self.scale,
            shift=0.0 if self.shift is None else self.shift,
        )


class TinyKLParams(CodecParams):
    """The included autoencoder, trained on 64x64 emoji: 16 channels, 8 pixels to a place, a normal posterior."""

    def weight_files(self) -> tuple[Path, ...]:
        return (ASSETS / "tiny_kl.safetensors",)

    def facts(self, data: DataFacts | None = None) -> CodecFacts:
        known = tiny_kl_facts()
        return CodecFacts(
            channels=16,
            factor=8,
            scale=known["scale"] if self.scale is None else self.scale,
            shift=known["shift"] if self.shift is None else self.shift,
        )


@cache
def tiny_kl_facts() -> dict[str, Any]:
    """Return what was measured when the included autoencoder was trained."""
    known: dict[str, Any] = json.loads((ASSETS / "tiny_kl.json").read_text(encoding="utf-8"))
    return known


KINDS = ("AutoencoderKL", "AutoencoderDC", "AutoencoderTiny", "AutoencoderRAE")
"""Classes of diffusers whose latents are images."""
UNSTATED_SCALES = {"AutoencoderKL": 0.18215}
"""Scale of a class whose config states none, as configs of early versions; of other classes 1. As in diffusers."""
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class DiffusersParams(CodecParams):
    """An autoencoder of diffusers, of a folder that save_pretrained wrote: KL, DC, Tiny or RAE."""

    path: str = Field(
        "",
        description="The folder with config.json and diffusion_pytorch_model.safetensors, relative to the recipe.",
        json_schema_extra=PLACE,
    )
    hub: str = Field(
        "",
        description="Instead of path: a repository of the Hugging Face hub, such as stabilityai/sd-vae-ft-ema, "
        "which is downloaded at its first use. Nothing is downloaded without this key.",
        json_schema_extra={"free": True},
    )
    revision: str = Field(
        "", description="With hub: branch, tag or commit. Empty: the newest.", json_schema_extra={"free": True}
    )
    subfolder: str = Field(
        "", description="Folder of the autoencoder in it, such as vae. Empty: none.", json_schema_extra={"free": True}
    )
    pixel_range: tuple[float, float] | None = Field(
        None,
        strict=False,
        description="Values of black and white as the network gets them. Not set: -1 and 1, for RAE 0 and 1.",
        json_schema_extra={"omit_default": True},
    )

    def folder(self) -> Path:
        """Return the folder of the autoencoder, downloaded if `hub` names it. Raises SD-D351 if there is none."""
        if bool(self.path) == bool(self.hub):
            got = "both" if self.path else "neither"
            expect = "path = a local folder, or hub = a repository to download"
            raise error("SD-D351", "the codec needs either path or hub", where="codec.path", got=got, expect=expect)
        root = Path(self.path) if self.path else download(self.hub, self.revision, self.subfolder)
        return root / self.subfolder

    def weight_files(self) -> tuple[Path, ...]:
        folder = self.folder()
        if (folder / WEIGHTS).is_file() or not (index := folder / f"{WEIGHTS}.index.json").is_file():
            return (folder / WEIGHTS,)
        parts = read_json_table(index).get("weight_map")
        if not isinstance(parts, dict) or not all(Path(str(name)).name == name for name in parts.values()):
            what, expect = "the index of the weights is damaged", "a weight_map of file names"
            raise error("SD-D351", what, where=str(index), expect=expect)
        return tuple(folder / name for name in sorted(set(parts.values())))

    def config(self) -> dict[str, Any]:
        """Return config.json. Raises SD-D351 if it is missing or describes no autoencoder of these kinds."""
        path = self.folder() / CONFIG
        if not path.is_file():
            raise missing_weights(path, f"a folder that save_pretrained of diffusers wrote, with {CONFIG}")
        config = read_json_table(path)
        if (found := config.get("_class_name")) not in KINDS:
            what = "no codec for this class of diffusers"
            raise error("SD-D351", what, where=str(path), got=str(found), expect=f"one of {', '.join(KINDS)}")
        return config

    def facts(self, data: DataFacts | None = None) -> CodecFacts:
        config = self.config()
        for file in self.weight_files():
            if not file.is_file():
                raise missing_weights(file, "the weights as safetensors; pickles are not read")
        try:
            return self._facts_of(config)
        except (TypeError, ValueError) as failure:
            where = str(self.folder() / CONFIG)
            raise error("SD-D351", f"{CONFIG} is damaged", where=where, got=str(failure), expect="numbers") from failure

    def _facts_of(self, config: dict[str, Any]) -> CodecFacts:
        """Return the facts that a config states. A network of RAE applies its scale itself."""
        name = config["_class_name"]
        is_rae = name == "AutoencoderRAE"
        scale, shift = (0.0, 0.0) if is_rae else (config.get("scaling_factor"), config.get("shift_factor"))
        channels, factor, size = shape_of(config)
        return CodecFacts(
            channels=channels,
            factor=factor,
            pixel_range=self.pixel_range or (0.0 if is_rae else -1.0, 1.0),
            scale=float(scale or UNSTATED_SCALES.get(name, 1.0)) if self.scale is None else self.scale,
            shift=float(shift or 0.0) if self.shift is None else self.shift,
            size=size,
        )


def shape_of(config: dict[str, Any]) -> tuple[int, int, int | None]:
    """Return channels, factor and the only image size (or None) of an autoencoder of diffusers, from its config."""
    match config["_class_name"]:
        case "AutoencoderRAE":
            patch, grid = config.get("patch_size", 16), config.get("encoder_input_size", 224)
            places = int(grid) // int(config.get("encoder_patch_size", 14))
            return int(config.get("encoder_hidden_size", 768)), int(patch), int(patch) * places
        case "AutoencoderKL":
            widths, channels = config.get("block_out_channels", [64]), config.get("latent_channels", 4)
        case "AutoencoderDC":
            widths = config.get("encoder_block_out_channels", [128, 256, 512, 512, 1024, 1024])
            channels = config.get("latent_channels", 32)
        case _:
            widths = config.get("encoder_block_out_channels", [64] * 4)
            channels = config.get("latent_channels", 4)
    if (pixels := config.get("in_channels", 3)) != 3:
        raise ValueError(f"images of {pixels} channels, not 3")
    return int(channels), 2 ** (len(widths) - 1), None


def read_json_table(path: Path) -> dict[str, Any]:
    """Return a JSON file that holds a table. Raises SD-D351 for another."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as failure:
        raise error("SD-D351", "the file cannot be read", where=str(path), got=str(failure), expect="JSON") from failure
    if not isinstance(content, dict):
        raise error(
            "SD-D351", "the file holds no table", where=str(path), got=type(content).__name__, expect="a JSON object"
        )
    return content


@cache
def download(repository: str, revision: str, subfolder: str) -> Path:
    """Return the folder of a repository of the hub, whose autoencoder is downloaded if it is not stored yet."""
    hub = import_module("huggingface_hub")  # which diffusers requires
    inside = f"{subfolder}/" if subfolder else ""
    patterns = [f"{inside}{CONFIG}", f"{inside}diffusion_pytorch_model*.safetensors*"]
    try:
        return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except Exception as failure:  # of the network, of the hub, or of a wrong name
        got = shorten(f"{type(failure).__name__}: {failure}", 200)
        what, expect = "the codec cannot be downloaded", "a repository of the hub, and a connection to it"
        raise error("SD-D351", what, where="codec.hub", got=got, expect=expect) from failure


class LinearParams(CodecParams):
    """Colours by a linear map that was fitted when the cache was made: previews without the decoder."""

    def facts(self, data: DataFacts | None = None) -> CodecFacts:
        if data is None or data.colours is None:
            what = "the codec linear only decodes, with the map of a cache of latents"
            got = "no cache" if data is None else f"{data.source}, without a map"
            raise error("SD-D350", what, where="codec.name", got=got, expect='a cache whose latents.json has "colours"')
        return CodecFacts(
            channels=len(data.colours.weights[0]),
            factor=data.colours.factor,
            pixel_range=(0.0, 1.0),
            scale=data.latent_scale or 1.0,
            shift=data.latent_shift,
            encodes=False,
            preview_only=True,
        )
