"""Convert published weights of DiT and MaskDiT to and from our names.

Each format is a `sddit.interfaces.WeightFormat`; constructor arguments are handled in `constructors`. Public functions
here serve formats of related networks in other plugins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sddit.interfaces import NOTHING, Shapes, WeightDescription
from sddit_dit.blocks import sincos_positions
from sddit_dit.constructors import (
    Arguments,
    config_dit,
    config_maskdit,
    infer_dit,
    infer_maskdit,
    sized,
    with_null,
)
from sddit_dit.params import DiTParams, TransformerParams

CHAIN = {"timesteps": 1000, "betas": "linear", "beta_min": 1e-4, "beta_max": 0.02}
"""Noise schedule that DiT and MDT were trained with, as in their code and diffusers' scheduler (arXiv:2212.09748)."""

FILES = ("config.json", "model.safetensors")
"""File names of an export: arguments and weights."""

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]

BLOCK: Rules = (
    ("adaLN_modulation.1.", "modulation."),
    ("attn.qkv.", "attention.qkv."),
    ("attn.proj.", "attention.proj."),
    ("mlp.fc1.", "mlp.up."),
    ("mlp.fc2.", "mlp.down."),
)
OUTER: Rules = (
    ("x_embedder.proj.", "patch."),
    ("t_embedder.mlp.0.", "timestep.hidden."),
    ("t_embedder.mlp.2.", "timestep.out."),
    ("final_layer.adaLN_modulation.1.", "final.modulation."),
    ("final_layer.linear.", "final.linear."),
)
BRIDGE: Rules = (
    ("decoder_layer.adaLN_modulation.1.", "decoder_input.bridge.modulation."),
    ("decoder_layer.linear.", "decoder_input.bridge.linear."),
)
LABEL = ("y_embedder.embedding_table.weight", "label.weight")
TABLES = (("pos_embed", "positions.table"), ("decoder_pos_embed", "decoder_input.positions.table"))
MASK_TOKEN = ("mask_token", "decoder_input.mask_token")


def renamed(name: str, rules: Rules, *, back: bool = False) -> str:
    """Return `name` with its prefix replaced by the first matching rule. Raises KeyError if none matches."""
    for theirs, ours in rules:
        old, new = (ours, theirs) if back else (theirs, ours)
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise KeyError(f"no such parameter in this format: {name}")


def kernel(weight: Tensor, params: TransformerParams, shapes: Shapes) -> Tensor:
    """Return our patch embedding [D, C p p] as the weight of a convolution, [D, C, p, p]."""
    return weight.reshape(-1, shapes.image[0], params.patch, params.patch)


def numbered(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return our settings for numeric sizes."""
    names = {"width": "hidden_size", "depth": "depth", "heads": "num_heads", "patch": "patch_size"}
    return {ours: config[theirs] for ours, theirs in names.items()} | {"mlp_ratio": float(config.get("mlp_ratio", 4.0))}


def describe_dit(config: Mapping[str, Any], family: str = "DiT") -> WeightDescription:
    """Describe a network from `input_size`, `num_classes` and `class` (DiT-S/2) or `hidden_size`, `depth`, ..."""
    settings = numbered(config) if "hidden_size" in config else sized(config["class"], family)
    side, learned = config["input_size"], config.get("learn_sigma", True)
    shapes = Shapes(
        image=(config.get("in_channels", 4), side, side),
        num_classes=config["num_classes"],
        outputs=2 if learned else 1,
    )
    dropped = config.get("class_dropout_prob", 0.1) > 0
    recipe = recipe_of_dit(shapes, dropped=dropped)
    return WeightDescription(settings, shapes, ("ddpm", {"learned_variance": learned, **CHAIN}), recipe)


def recipe_of_dit(shapes: Shapes, *, dropped: bool) -> dict[str, Any]:
    """Return a recipe with one view and 250 ancestral steps guided on three channels (arXiv:2212.09748).

    Use DDIM if no variance is learned, and no guidance unless labels were `dropped` in training.
    """
    learned = shapes.outputs == 2
    return {
        "pair_sampler": {"name": "single"},
        "loss": {"denoise": {"name": "hybrid"} if learned else {"name": "hybrid", "vb_weight": 0.0}},
        "sampler": {"name": "ancestral", "steps": 250} if learned else {"name": "ddim", "steps": 250},
        **(
            guided(shapes, scale=1.5, channels=min(3, shapes.image[0])) if dropped else {"dataset": {"label_drop": 0.0}}
        ),
    }


def guided(shapes: Shapes, **settings: Any) -> dict[str, Any]:
    """Return the table of classifier-free guidance for a network with classes, otherwise nothing."""
    return {"guidance": {"name": "cfg", **settings}} if shapes.num_classes else {}


class DiTFormat:
    """Format of facebookresearch/DiT."""

    files = FILES
    note = ""
    idle = ("class", "class_dropout_prob")

    @staticmethod
    def describe(config: Mapping[str, Any]) -> WeightDescription:
        """Describe a network: see `describe_dit`."""
        return describe_dit(config)

    @staticmethod
    def config(params: DiTParams, shapes: Shapes, schedule: Mapping[str, Any]) -> Arguments:
        return config_dit(params, shapes)

    @staticmethod
    def infer(state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> tuple[Arguments, Arguments]:
        return infer_dit(state, given)

    @staticmethod
    def to_ours(state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> State:
        encoder = _encoder_depth(state)
        return with_null(
            dict(_ours(name, tensor, encoder, linear_labels=False) for name, tensor in state.items()), given
        )

    @staticmethod
    def to_theirs(state: Mapping[str, Tensor], params: DiTParams, shapes: Shapes) -> State:
        return _theirs(state, params, shapes, linear_labels=False)


class MaskDiTFormat:
    """Format of Anima-Lab/MaskDiT. Names have the prefix `model.` of the preconditioning module."""

    files = FILES
    note = ""
    idle = ("class", "mask_ratio", "mae_loss_coef")

    @staticmethod
    def describe(config: Mapping[str, Any]) -> WeightDescription:
        """Describe a network from `img_resolution`, `num_classes`, `use_decoder` and `class` or `model`."""
        settings = numbered(config["model"]) if "model" in config else sized(config["class"])
        settings["null_label"] = "zero"
        if config.get("use_decoder", True):
            sizes = {"depth": "decoder_depth", "width": "decoder_hidden_size", "heads": "decoder_num_heads"}
            given = config.get("decoder", {})  # empty: the published one
            if given and "decoder_num_heads" not in given:
                raise KeyError("decoder.decoder_num_heads")
            settings["decoder"] = {ours: given[theirs] for ours, theirs in sizes.items() if theirs in given}
            settings["fill"] = "learned" if config.get("mae_loss_coef", 0) > 0 else "zero"
        side = config["img_resolution"]
        shapes = Shapes((config.get("img_channels", 4), side, side), config["num_classes"])
        schedule = {"sigma_data": config.get("sigma_data", 0.5)}
        return WeightDescription(settings, shapes, ("edm", schedule), recipe_of_maskdit(shapes))

    @staticmethod
    def config(params: DiTParams, shapes: Shapes, schedule: Mapping[str, Any]) -> Arguments:
        return config_maskdit(params, shapes, schedule)

    @staticmethod
    def infer(state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> tuple[Arguments, Arguments]:
        return infer_maskdit(state, given)

    @staticmethod
    def to_ours(state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> State:
        bare = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        encoder = _encoder_depth(bare)
        return dict(_ours(name, tensor, encoder, linear_labels=True) for name, tensor in bare.items())

    @staticmethod
    def to_theirs(state: Mapping[str, Tensor], params: DiTParams, shapes: Shapes) -> State:
        bare = _theirs(state, params, shapes, linear_labels=True)
        return {f"model.{name}": tensor for name, tensor in bare.items()}


def recipe_of_maskdit(shapes: Shapes) -> dict[str, Any]:
    """Return a recipe of the unmasked tuning stage and 40 steps of Heun with guidance 1.5 (arXiv:2306.09305)."""
    return {
        "pair_sampler": {"name": "single"},
        "loss": {"denoise": {"name": "denoising"}},
        "sampler": {"name": "heun", "steps": 40},
        **guided(shapes, scale=1.5),
    }


def _encoder_depth(state: Mapping[str, Tensor]) -> int:
    return 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))


def _ours(name: str, tensor: Tensor, encoder: int, *, linear_labels: bool) -> tuple[str, Tensor]:
    """Convert one entry of theirs to ours. Their encoder and decoder blocks are one list here."""
    if match := re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)", name):
        number = int(match[2]) + (encoder if match[1] else 0)
        return f"blocks.{number}.{renamed(match[3], BLOCK)}", tensor
    if name == LABEL[0]:
        return LABEL[1], tensor.T.contiguous() if linear_labels else tensor
    if name in dict(TABLES):
        return dict(TABLES)[name], tensor.squeeze(0)
    if name == MASK_TOKEN[0]:
        return MASK_TOKEN[1], tensor.flatten()
    return renamed(name, OUTER + BRIDGE), tensor.flatten(1) if name == "x_embedder.proj.weight" else tensor


def _theirs(state: Mapping[str, Tensor], params: DiTParams, shapes: Shapes, *, linear_labels: bool) -> State:
    """Convert all entries of ours to theirs and add the fixed tables that their files contain."""
    found = {}
    encoder = params.encoder_depth if params.decoder else len(params.block_sizes)
    for name, tensor in state.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            number = int(match[1])
            block = f"blocks.{number}" if number < encoder else f"decoder_blocks.{number - encoder}"
            found[f"{block}.{renamed(match[2], BLOCK, back=True)}"] = tensor
        elif name == LABEL[1]:
            found[LABEL[0]] = tensor.T.contiguous() if linear_labels else tensor
        elif name == MASK_TOKEN[1]:
            found[MASK_TOKEN[0]] = tensor[None, None]
        elif name == "patch.weight":
            found["x_embedder.proj.weight"] = kernel(tensor, params, shapes)
        else:
            found[renamed(name, OUTER + BRIDGE, back=True)] = tensor
    widths = (params.block_sizes[0][0], params.block_sizes[-1][0])
    for (name, _), width in zip(TABLES[: 1 + (params.decoder is not None)], widths, strict=False):
        found[name] = sincos_positions(params.grid(shapes), width)[None].to(torch.float32)
    return found
