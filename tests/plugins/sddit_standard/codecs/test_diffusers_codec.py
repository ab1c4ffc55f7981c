"""Test the autoencoders of diffusers: facts from the config, results, and folders that are refused."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sddit
from sddit.errors import SdditError
from sddit.interfaces import CodecFacts, file_sha256
from sddit.plugins.host import Host
from sddit.testing import check
from sddit_standard.codecs import params as codec_params
from sddit_standard.codecs.diffusers_codec import quiet
from sddit_standard.codecs.params import CONFIG, WEIGHTS, DiffusersParams

CPU = torch.device("cpu")

KL: dict[str, Any] = {
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
    "shift_factor": 0.25,
}
TINY: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
DC: dict[str, Any] = {
    "latent_channels": 4,
    "attention_head_dim": 4,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": (8, 16),
    "decoder_block_out_channels": (8, 16),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), ()),
    "decoder_qkv_multiscales": ((), ()),
}
EXPECTED = {
    "AutoencoderKL": CodecFacts(channels=4, factor=4, scale=0.5, shift=0.25),
    "AutoencoderTiny": CodecFacts(channels=4, factor=2),
    "AutoencoderDC": CodecFacts(channels=4, factor=2),
}
SETTINGS = {"AutoencoderKL": KL, "AutoencoderTiny": TINY, "AutoencoderDC": DC}


def module() -> Any:
    with quiet():
        return pytest.importorskip("diffusers", reason='needs the extra: pip install "sddit[diffusers]"')


def saved(kind: str, folder: Path) -> Any:
    """Save an autoencoder with random weights, and return it."""
    torch.manual_seed(0)
    network = getattr(module(), kind)(**SETTINGS[kind]).eval()
    network.save_pretrained(folder)
    return network


def build(folder: Path, **more: Any) -> Any:
    return sddit.build("codecs", "diffusers", {"path": str(folder), **more}, device="cpu")


@pytest.mark.parametrize("kind", EXPECTED)
def test_an_autoencoder_conforms_and_states_its_config(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    assert DiffusersParams(path=str(tmp_path)).facts() == EXPECTED[kind]
    check("diffusers", "codecs", path=str(tmp_path))


def test_results_are_those_of_diffusers(tmp_path: Path) -> None:
    network, images = saved("AutoencoderKL", tmp_path), (torch.rand(2, 3, 16, 16) * 255).to(torch.uint8)
    codec = build(tmp_path)
    mean, std = codec.encode(images)
    with torch.no_grad():
        posterior = network.encode(images.float() / 127.5 - 1).latent_dist
        decoded = network.decode(posterior.mean).sample
    assert torch.allclose(mean, posterior.mean, atol=1e-5)
    assert torch.allclose(std, posterior.std, atol=1e-5)
    assert not torch.allclose(mean * 0.5, posterior.mean, atol=1e-2)  # the control: the scale is not applied
    expected = ((decoded + 1) * 127.5).round().clamp(0, 255)
    assert (codec.decode(posterior.mean).float() - expected).abs().max() <= 1
    other = build(tmp_path, pixel_range=[0.0, 1.0])
    assert other.facts.pixel_range == (0.0, 1.0)
    assert not torch.allclose(other.encode(images)[0], mean, atol=1e-2)


def test_scale_and_shift_can_be_set(tmp_path: Path) -> None:
    saved("AutoencoderKL", tmp_path)
    facts = DiffusersParams(path=str(tmp_path), scale=2.0, shift=-1.0).facts()
    assert (facts.scale, facts.shift) == (2.0, -1.0)


@pytest.mark.parametrize(("kind", "scale"), [("AutoencoderKL", 0.18215), ("AutoencoderTiny", 1.0)])
def test_a_config_of_an_early_version_states_no_scale(kind: str, scale: float, tmp_path: Path) -> None:
    """Such as that of the autoencoder of DiT, sd-vae-ft-ema. diffusers' own default counts."""
    saved(kind, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    stated = DiffusersParams(path=str(tmp_path)).facts().scale
    (tmp_path / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if k != "scaling_factor"}))
    assert DiffusersParams(path=str(tmp_path)).facts().scale == scale == getattr(module(), kind)().config.scaling_factor
    assert stated == EXPECTED[kind].scale and (stated != scale or kind == "AutoencoderTiny")


def test_a_subfolder_and_shards_are_found(tmp_path: Path) -> None:
    network = saved("AutoencoderKL", tmp_path / "whole")
    network.save_pretrained(tmp_path / "parts" / "vae", max_shard_size="20KB")
    parts = DiffusersParams(path=str(tmp_path / "parts"), subfolder="vae").fingerprinted()
    assert len(parts.weight_files()) > 1
    whole = DiffusersParams(path=str(tmp_path / "whole")).fingerprinted()
    assert whole.sha256 == file_sha256(tmp_path / "whole" / WEIGHTS) != parts.sha256
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    codec = sddit.build("codecs", "diffusers", {"path": str(tmp_path / "parts"), "subfolder": "vae"}, device="cpu")
    assert torch.equal(codec.encode(images)[0], build(tmp_path / "whole").encode(images)[0])


def test_facts_of_a_representation_autoencoder(tmp_path: Path) -> None:
    """Its config alone: the network needs the package transformers."""
    config = {"_class_name": "AutoencoderRAE", "scaling_factor": 0.7, "encoder_hidden_size": 384}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (tmp_path / WEIGHTS).write_bytes(b"")
    facts = DiffusersParams(path=str(tmp_path)).facts()
    assert facts == CodecFacts(channels=384, factor=16, pixel_range=(0.0, 1.0), size=256)
    assert facts.latent_shape((3, 256, 256)) == (384, 16, 16)


def drop_a_tensor(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    del state["decoder.conv_out.weight"]
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def add_a_tensor(folder: Path) -> None:
    save_file({**load_file(folder / WEIGHTS), "more": torch.zeros(1)}, folder / WEIGHTS, metadata={"format": "pt"})


def reshape_a_tensor(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["decoder.conv_out.weight"] = state["decoder.conv_out.weight"][:, :4].clone()
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **changes}))

    return change


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder: (folder / CONFIG).unlink(), "not there"),
        (lambda folder: (folder / WEIGHTS).unlink(), "pickles are not read"),
        (lambda folder: (folder / CONFIG).write_text("{"), "cannot be read"),
        (lambda folder: (folder / CONFIG).write_text("[]"), "holds no table"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:999]), "cannot load"),
        (drop_a_tensor, "missing_keys: decoder.conv_out.weight"),
        (add_a_tensor, "unexpected_keys: more"),
        (reshape_a_tensor, "decoder.conv_out.weight"),
        (change_config(_class_name="UNet2DModel"), "no codec for this class"),
        (change_config(latent_channels="many"), "damaged"),
        (change_config(in_channels=1), "images of 1 channels"),
    ],
    ids=[
        *("no config", "no weights", "text", "list", "truncated", "tensor missing", "tensor more", "other shape"),
        *("other class", "bad number", "grey"),
    ],
)
def test_an_unusable_folder_is_refused(damage: Callable[[Path], object], part: str, tmp_path: Path) -> None:
    saved("AutoencoderKL", tmp_path)
    damage(tmp_path)
    with pytest.raises(SdditError, match=part) as caught:
        build(tmp_path)
    assert [problem.code for problem in caught.value.problems] == ["SD-D351"]


@pytest.mark.parametrize("given", [{}, {"path": "a", "hub": "b/c"}])
def test_path_and_hub_exclude_each_other(given: dict[str, str]) -> None:
    with pytest.raises(SdditError, match=r"SD-D351(.|\n)*either path or hub"):
        DiffusersParams(**given).facts()


def test_the_hub_is_asked_only_when_a_recipe_names_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved("AutoencoderKL", tmp_path / "vae")
    asked: list[Any] = []

    def snapshot_download(repository: str, **more: Any) -> str:
        asked.append((repository, more))
        if repository == "no/such":
            raise OSError("no connection")
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    codec_params.download.cache_clear()
    DiffusersParams(path=str(tmp_path / "vae")).facts()
    assert asked == []
    assert DiffusersParams(hub="a/b", revision="v1", subfolder="vae").facts() == EXPECTED["AutoencoderKL"]
    (repository, more), *others = asked
    assert (repository, more["revision"], others) == ("a/b", "v1", [])
    assert all(pattern.startswith("vae/") for pattern in more["allow_patterns"])
    with pytest.raises(SdditError, match=r"SD-D351(.|\n)*no connection"):
        DiffusersParams(hub="no/such").facts()
    codec_params.download.cache_clear()


def test_a_missing_package_is_named_with_its_extra(toys: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.interfaces.component._installed", lambda name: name != "diffusers")
    with pytest.raises(SdditError, match=r'SD-P210(.|\n)*pip install "sddit\[diffusers\]"'):
        sddit.build("codecs", "diffusers", {"path": "a"}, device="cpu")
