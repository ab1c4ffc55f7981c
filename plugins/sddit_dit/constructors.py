"""What tensors tell of the published network they are from, and the arguments that make it. Facts of names and shapes only.

The counterpart of `formats`, which moves the tensors; the relatives of DiT share it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sddit.interfaces import Shapes
from sddit_dit.params import DiTParams, TransformerParams

Arguments = dict[str, Any]

USUAL_HEADS = {384: 6, 512: 16, 768: 12, 1024: 16, 1152: 16, 1280: 16}
"""Attention heads by width: DiT's S, B, L and XL, MaskDiT's decoder and its H. No tensor tells them."""


# ------------------------------------------------------------------------------------------------------- what tensors tell


def infer_dit(state: Mapping[str, Tensor]) -> tuple[Arguments, Arguments]:
    """Of DiT's files: everything but the heads, which are those of the published size of that width."""
    sizes = sizes_in(state, "blocks.0.mlp.fc1.weight")
    told = {**sizes, **image_in(state), "depth": blocks_in(state, "blocks."), **labels_and_outputs_in(state)}
    return told, heads_of(sizes["hidden_size"])


def infer_maskdit(state: Mapping[str, Tensor]) -> tuple[Arguments, Arguments]:
    """Of MaskDiT's files, whose names begin with `model.`; sigma_data is EDM's unless something else is said."""
    bare = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    sizes, image = sizes_in(bare, "blocks.0.mlp.fc1.weight"), image_in(bare)
    if (rows := len(bare["final_layer.linear.weight"])) != image["in_channels"] * sizes["patch_size"] ** 2:
        raise KeyError(f"a last layer of {rows} rows is not MaskDiT's, which learns no variance")
    told = {
        **{
            theirs: image[name]
            for name, theirs in (("input_size", "img_resolution"), ("in_channels", "img_channels"))
            if name in image
        },
        "num_classes": bare["y_embedder.embedding_table.weight"].shape[1]
        if "y_embedder.embedding_table.weight" in bare
        else 0,
        "use_decoder": "decoder_layer.linear.weight" in bare,
        "model": {**sizes, "depth": blocks_in(bare, "blocks.")},
    }
    usual: Arguments = {"sigma_data": 0.5, "mae_loss_coef": 0.1 if "mask_token" in bare else 0.0}
    usual["model"] = heads_of(sizes["hidden_size"])
    if told["use_decoder"]:
        width = len(bare["decoder_layer.linear.weight"])
        told["decoder"] = {"decoder_hidden_size": width, "decoder_depth": blocks_in(bare, "decoder_blocks.")}
        usual["decoder"] = {f"decoder_{name}": heads for name, heads in heads_of(width).items()}
    return told, usual


def sizes_in(state: Mapping[str, Tensor], mlp: str) -> Arguments:
    """Width, patch and MLP ratio. Raises KeyError for names that no relative of DiT has."""
    width, _, patch, _ = state["x_embedder.proj.weight"].shape
    return {"hidden_size": width, "patch_size": patch, "mlp_ratio": len(state[mlp]) / width}


def image_in(state: Mapping[str, Tensor]) -> Arguments:
    """Channels and, where the positions are in the file, the side of the image."""
    _, channels, patch, _ = state["x_embedder.proj.weight"].shape
    if "pos_embed" not in state:
        return {"in_channels": channels}
    tokens = state["pos_embed"].shape[1]
    if (side := math.isqrt(tokens)) ** 2 != tokens:
        raise KeyError(f"{tokens} positions make no square")
    return {"in_channels": channels, "input_size": side * patch}


def labels_and_outputs_in(state: Mapping[str, Tensor]) -> Arguments:
    """The number of classes, from a label table with a last row for none, and whether a variance is learned."""
    _, channels, patch, _ = state["x_embedder.proj.weight"].shape
    outputs, rest = divmod(len(state["final_layer.linear.weight"]), channels * patch**2)
    if rest or outputs not in (1, 2):
        raise KeyError(f"a last layer of {len(state['final_layer.linear.weight'])} rows is not DiT's")
    return {"num_classes": len(state["y_embedder.embedding_table.weight"]) - 1, "learn_sigma": outputs == 2}


def blocks_in(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks a list has. Raises KeyError for none."""
    numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)}
    if not numbers or numbers != set(range(len(numbers))):
        raise KeyError(f"no blocks {prefix}0, {prefix}1, ...")
    return len(numbers)


def heads_of(width: int) -> Arguments:
    """The published number of heads for a width, if there is one."""
    return {"num_heads": USUAL_HEADS[width]} if width in USUAL_HEADS else {}


# ---------------------------------------------------------------------------------------------------- what makes a network


def config_dit(params: DiTParams, shapes: Shapes) -> Arguments:
    """DiT's arguments. Raises ValueError for what DiT does not have."""
    refuse({"a decoder": params.decoder is not None, "a class token": params.cls_token})
    refuse({"a null label that is the zero vector": params.null_label == "zero"})
    return plain_config(params, shapes)


def plain_config(params: TransformerParams, shapes: Shapes) -> Arguments:
    """The arguments that DiT and MDT share."""
    return {
        "input_size": side_of(shapes),
        "in_channels": shapes.image[0],
        "num_classes": shapes.num_classes,
        "learn_sigma": shapes.outputs == 2,
        **numbers(params),
    }


def config_maskdit(params: DiTParams, shapes: Shapes, schedule: Mapping[str, Any]) -> Arguments:
    """MaskDiT's arguments. Raises ValueError for what MaskDiT does not have."""
    decoder = params.decoder
    refuse({"a class token": params.cls_token, "a learned variance": shapes.outputs > 1})
    refuse({"a learned row for no label": params.null_label == "row"})
    refuse({"a noise schedule without sigma_data": "sigma_data" not in schedule})
    if decoder is not None:
        refuse(
            {"a split decoder": decoder.style == "split", "a bridge of the noisy tokens' own": decoder.bridge == "own"}
        )
        refuse({"noisy tokens at hidden positions": params.fill == "input"})
    config = {
        "img_resolution": side_of(shapes),
        "img_channels": shapes.image[0],
        "num_classes": shapes.num_classes,
        "sigma_data": schedule["sigma_data"],
        "use_decoder": decoder is not None,
        "mae_loss_coef": 0.1 if params.fill == "learned" else 0.0,
        "model": numbers(params),
    }
    if decoder is not None:
        config["decoder"] = {
            "decoder_hidden_size": decoder.width,
            "decoder_depth": decoder.depth,
            "decoder_num_heads": decoder.heads,
        }
    return config


def numbers(params: TransformerParams) -> Arguments:
    """Sizes by number."""
    depth, width, heads = params.named_size
    return {
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "patch_size": params.patch,
        "mlp_ratio": params.mlp_ratio,
    }


def side_of(shapes: Shapes) -> int:
    """Height and width of a square image."""
    _, height, width = shapes.image
    refuse({f"an image of {height} x {width}, which is no square": height != width})
    return height


def refuse(has: Mapping[str, bool]) -> None:
    """Raise ValueError for the first thing that is so."""
    for what, is_so in has.items():
        if is_so:
            raise ValueError(f"it has no place for {what}")
