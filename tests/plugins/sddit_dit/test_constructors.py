"""What tensors tell of a published network: at every published size, without the memory of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.errors import SdditError
from sddit.exchange.arguments import flat
from sddit.exchange.importing import recipe_of
from sddit.exchange.published import understood
from sddit.interfaces import Shapes
from sddit_dit import DiTParams
from sddit_dit.diffusers_format import DiffusersFormat
from sddit_dit.formats import DiTFormat, MaskDiTFormat
from sddit_dit.params import SIZES

H = {"H": (32, 1280, 16)}  # MaskDiT's own size
State = dict[str, Tensor]


def empty(shapes: dict[str, tuple[int, ...]]) -> State:
    """Tensors of any size in the memory of one number."""
    return {name: torch.zeros(1).expand(*shape) for name, shape in shapes.items()}


def block(width: int, condition: int) -> dict[str, tuple[int, ...]]:
    return {
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
        "adaLN_modulation.1.weight": (6 * width, condition),
        "adaLN_modulation.1.bias": (6 * width,),
    }


def trunk(width: int, depth: int, patch: int, tokens: int, last: int, rows: int) -> dict[str, tuple[int, ...]]:
    """What DiT and MaskDiT have in common; `last` is the width before the output, of `rows` values."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, tokens, width),
        "x_embedder.proj.weight": (width, 4, patch, patch),
        "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width),
        "t_embedder.mlp.2.bias": (width,),
        "final_layer.linear.weight": (rows, last),
        "final_layer.linear.bias": (rows,),
        "final_layer.adaLN_modulation.1.weight": (2 * last, width),
        "final_layer.adaLN_modulation.1.bias": (2 * last,),
    }
    for number in range(depth):
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block(width, width).items()}
    return shapes


def dit_file(depth: int, width: int, patch: int = 2, side: int = 32, classes: int = 1000, outputs: int = 2) -> State:
    shapes = trunk(width, depth, patch, (side // patch) ** 2, width, outputs * 4 * patch**2)
    return empty({**shapes, "y_embedder.embedding_table.weight": (classes + 1, width)})


def maskdit_file(depth: int, width: int, patch: int = 2, classes: int = 1000, decoder: bool = True) -> State:
    tokens = (32 // patch) ** 2
    shapes = trunk(width, depth, patch, tokens, 512 if decoder else width, 4 * patch**2)
    if classes:
        shapes["y_embedder.embedding_table.weight"] = (width, classes)
    if decoder:
        shapes |= {"decoder_pos_embed": (1, tokens, 512), "mask_token": (1, 1, 512)}
        shapes |= {"decoder_layer.linear.weight": (512, width), "decoder_layer.linear.bias": (512,)}
        shapes["decoder_layer.adaLN_modulation.1.weight"] = (2 * width, width)
        shapes["decoder_layer.adaLN_modulation.1.bias"] = (2 * width,)
        for number in range(8):
            shapes |= {f"decoder_blocks.{number}.{name}": shape for name, shape in block(512, width).items()}
    return empty({f"model.{name}": shape for name, shape in shapes.items()})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_dit_is_known_by_its_tensors(size: str, patch: int) -> None:
    depth, width, heads = SIZES[size]
    known = understood(dit_file(depth, width, patch), "dit", {})
    assert known.shapes == Shapes((4, 32, 32), 1000, outputs=2)
    assert known.params.named_size == (depth, width, heads)  # type: ignore[attr-defined]
    assert known.told | known.guessed == known.config
    assert known.guessed == {"num_heads": heads}
    assert known.description.noise_schedule == ("ddpm", {"learned_variance": True})


@pytest.mark.parametrize("size", [*SIZES, *H])
def test_maskdit_is_known_by_its_tensors(size: str) -> None:
    depth, width, heads = (SIZES | H)[size]
    known = understood(maskdit_file(depth, width), "maskdit", {})
    params = known.params
    assert isinstance(params, DiTParams)
    assert params.decoder is not None
    assert (params.named_size, params.null_label, params.fill) == ((depth, width, heads), "zero", "learned")
    assert (params.decoder.width, params.decoder.depth, params.decoder.heads) == (512, 8, 16)
    assert known.shapes == Shapes((4, 32, 32), 1000)
    assert set(flat(known.guessed)) == {"sigma_data", "mae_loss_coef", "model.num_heads", "decoder.decoder_num_heads"}


@pytest.mark.parametrize("classes", [0, 7])
@pytest.mark.parametrize("outputs", [1, 2])
def test_classes_and_variance_are_read_off(classes: int, outputs: int) -> None:
    known = understood(dit_file(2, 384, side=16, classes=classes, outputs=outputs), "dit", {})
    assert known.shapes == Shapes((4, 16, 16), classes, outputs)
    masked = understood(maskdit_file(2, 384, classes=classes), "maskdit", {})
    assert masked.shapes.num_classes == classes
    assert understood(maskdit_file(2, 384, decoder=False), "maskdit", {}).params.decoder is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("state", "layout"),
    [
        (dit_file(2, 384), "dit"),
        (dit_file(2, 384, classes=0), "dit"),
        (dit_file(2, 384, outputs=1), "dit"),
        (maskdit_file(2, 384), "maskdit"),
        (maskdit_file(2, 384, classes=0), "maskdit"),
        (maskdit_file(2, 384, decoder=False), "maskdit"),
    ],
)
def test_a_recipe_is_made_that_samples_as_published(state: State, layout: str) -> None:
    known = understood(state, layout, {})
    recipe = recipe_of(known, "x")
    assert recipe.shapes == known.shapes
    assert recipe.warnings == ()
    assert recipe.sampler.params.steps == (250 if layout == "dit" else 40)
    assert recipe.guidance.component.name == ("cfg" if known.shapes.num_classes else "none")


@pytest.mark.parametrize(
    ("state", "layout", "given", "words"),
    [
        (dit_file(1, 384), "maskdit", {}, "SD-C455(.|\n)*learns no variance"),
        (maskdit_file(1, 384), "dit", {}, r"SD-C455(.|\n)*x_embedder\.proj\.weight is missing"),
        ({"a": torch.zeros(1)}, "dit", {}, "SD-C455"),
        (dit_file(1, 100), "dit", {}, "SD-C454(.|\n)*num_heads is missing"),
        (dit_file(1, 100), "dit", {"num_heads": 3}, "SD-C454(.|\n)*cannot be divided"),
        (dit_file(1, 384), "dit", {"num_classes": 10}, "SD-C454(.|\n)*1000, as the tensors"),
        (dit_file(1, 384), "dit", {"num_clases": 3}, "SD-C454(.|\n)*no use for 'num_clases'"),
        (dit_file(2, 384, side=4) | {"blocks.3.attn.qkv.bias": torch.zeros(1)}, "dit", {}, "SD-C455(.|\n)*no blocks"),
        (dit_file(1, 384) | {"pos_embed": torch.zeros(1, 7, 384)}, "dit", {}, "SD-C455(.|\n)*no square"),
    ],
)
def test_what_does_not_fit_is_refused(state: State, layout: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(SdditError, match=words):
        understood(state, layout, given)


NO_PLACE: list[tuple[Any, dict[str, Any], Shapes, str]] = [
    (DiTFormat, {"decoder": {}}, Shapes((4, 8, 8), 3), "a decoder"),
    (DiTFormat, {"cls_token": True}, Shapes((4, 8, 8), 3), "a class token"),
    (DiTFormat, {"null_label": "zero"}, Shapes((4, 8, 8), 3), "zero vector"),
    (DiTFormat, {}, Shapes((4, 8, 16), 3), "no square"),
    (MaskDiTFormat, {}, Shapes((4, 8, 8), 3), "a learned row"),
    (MaskDiTFormat, {"null_label": "zero", "decoder": {}}, Shapes((4, 8, 8), 3), "noisy tokens at hidden"),
    (MaskDiTFormat, {"null_label": "zero"}, Shapes((4, 8, 8), 3, 2), "a learned variance"),
    (
        MaskDiTFormat,
        {"null_label": "zero", "decoder": {"style": "split", "depth": 1}, "fill": "zero"},
        Shapes((4, 8, 8), 3),
        "split",
    ),
    (DiffusersFormat, {"decoder": {}}, Shapes((4, 8, 8), 3), "a decoder"),
    (DiffusersFormat, {"cls_token": True}, Shapes((4, 8, 8), 3), "a class token"),
    (DiffusersFormat, {"mlp_ratio": 2.0}, Shapes((4, 8, 8), 3), "an MLP ratio of 2"),
    (DiffusersFormat, {}, Shapes((4, 8, 8), 0), "no classes"),
]


@pytest.mark.parametrize(("layout", "settings", "shapes", "words"), NO_PLACE)
def test_a_network_without_a_place_is_named(layout: Any, settings: dict[str, Any], shapes: Shapes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layout.config(DiTParams(**settings), shapes, {"sigma_data": 0.5})
    with pytest.raises(ValueError, match="without sigma_data"):
        MaskDiTFormat.config(DiTParams(null_label="zero"), Shapes((4, 8, 8), 3), {})


@pytest.mark.parametrize("name", ["dit_a", "maskdit_a"])
def test_published_numbers_are_understood_and_come_back(published: Callable[[str], Any], name: str) -> None:
    stored, layout = published(name), name.removesuffix("_a")
    heads = {"num_heads": 4} if layout == "dit" else {"model": {"num_heads": 4}, "decoder": {"decoder_num_heads": 4}}
    state = {key: tensor.float() for key, tensor in stored.state.items()}
    known = understood(state, layout, heads)
    form = {"dit": DiTFormat, "maskdit": MaskDiTFormat}[layout]
    network = known.trained()
    theirs = form.to_theirs(network.state_dict(), known.params, known.shapes)  # type: ignore[arg-type]
    assert theirs.keys() == state.keys()
    assert all(torch.equal(theirs[key], state[key]) for key in state)
    spoilt = {**state, (key := next(k for k in state if k.endswith("pos_embed"))): state[key] + 0.1}
    with pytest.raises(SdditError, match=r"SD-C455(.|\n)*fixed table"):
        understood(spoilt, layout, heads).parameters()


# ----------------------------------------------------------------------------------------------------------- diffusers


def diffusers_names(
    layers: int, width: int, patch: int, channels: int, out: int, classes: int
) -> dict[str, tuple[int, ...]]:
    """The state dict of `DiTTransformer2DModel`, from its documented config."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed.proj.weight": (width, channels, patch, patch),
        "pos_embed.proj.bias": (width,),
        "proj_out_1.weight": (2 * width, width),
        "proj_out_1.bias": (2 * width,),
        "proj_out_2.weight": (patch**2 * out, width),
        "proj_out_2.bias": (patch**2 * out,),
    }
    for number in range(layers):
        own: dict[str, tuple[int, ...]] = {
            "norm1.emb.timestep_embedder.linear_1.weight": (width, 256),
            "norm1.emb.timestep_embedder.linear_1.bias": (width,),
            "norm1.emb.timestep_embedder.linear_2.weight": (width, width),
            "norm1.emb.timestep_embedder.linear_2.bias": (width,),
            "norm1.emb.class_embedder.embedding_table.weight": (classes + 1, width),
            "norm1.linear.weight": (6 * width, width),
            "norm1.linear.bias": (6 * width,),
            "attn1.to_out.0.weight": (width, width),
            "attn1.to_out.0.bias": (width,),
            "ff.net.0.proj.weight": (4 * width, width),
            "ff.net.0.proj.bias": (4 * width,),
            "ff.net.2.weight": (width, 4 * width),
            "ff.net.2.bias": (width,),
        }
        for letter in "qkv":
            own |= {f"attn1.to_{letter}.weight": (width, width), f"attn1.to_{letter}.bias": (width,)}
        shapes |= {f"transformer_blocks.{number}.{name}": shape for name, shape in own.items()}
    return shapes


def test_diffusers_names_and_shapes_are_those_of_its_config(make: Any) -> None:
    shapes = Shapes((4, 8, 8), 10, outputs=2)
    network = make(image=shapes.image, num_classes=10, outputs=2, depth=3, width=24, heads=3)
    theirs = DiffusersFormat.to_theirs(network.state_dict(), network.params, shapes)
    assert {name: tuple(t.shape) for name, t in theirs.items()} == diffusers_names(3, 24, 2, 4, 8, 10)
    config = DiffusersFormat.config(network.params, shapes, {})
    assert (config["num_attention_heads"], config["attention_head_dim"]) == (3, 8)
    assert (config["sample_size"], config["out_channels"], config["num_embeds_ada_norm"]) == (8, 8, 10)
    known = understood(theirs, "diffusers", config)
    assert known.guessed == {}
    assert all(torch.equal(known.state[name], tensor) for name, tensor in network.state_dict().items())
    spoilt = {**theirs, (name := "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"): theirs[name] + 1}
    with pytest.raises(SdditError, match=r"SD-C455(.|\n)*different embedders"):
        understood(spoilt, "diffusers", config)


def test_the_published_diffusers_folder_is_understood_without_its_config() -> None:
    known = understood(
        empty(diffusers_names(28, 1152, 2, 4, 8, 1000)), "diffusers", {"_class_name": "Transformer2DModel"}
    )
    assert known.params.named_size == (28, 1152, 16)  # type: ignore[attr-defined]
    assert known.shapes == Shapes((4, 32, 32), 1000, outputs=2)
    assert math.prod(known.state["patch.weight"].shape) == 1152 * 16
