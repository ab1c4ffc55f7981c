"""Run the networks of codecs, and load their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from sddit.data.codecs import as_images, check_images, check_latents, in_unit_range, run_in_chunks
from sddit.errors import SdditError, error
from sddit.exchange.files import read_weight_file
from sddit.interfaces import CodecFacts, DataFacts
from sddit_standard.codecs.params import Taef2Params, TinyKLParams
from sddit_standard.codecs.taef2_network import Taef2
from sddit_standard.codecs.tiny_network import TinyKL

N = TypeVar("N", bound=nn.Module)


class Autoencoder(Protocol):
    """A network in float32, on its device and in evaluation mode."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of latents of images [B, 3, H, W] in the pixel range of the codec."""

    def decode(self, z: Tensor) -> Tensor:
        """Return images of latents."""


class NetworkCodec:
    """A `sddit.interfaces.Codec` of an autoencoder."""

    def __init__(self, network: Autoencoder, facts: CodecFacts, device: torch.device) -> None:
        self.facts = facts
        self._network, self._device = network, device

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        check_images(images, self.facts)
        mean, std = run_in_chunks(self._encode, images, self._device, (3, *images.shape[2:]))
        return mean, std

    def decode(self, latents: Tensor) -> Tensor:
        image = check_latents(latents, self.facts)
        (images,) = run_in_chunks(self._decode, latents.float(), self._device, image)
        return images

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self._network.encode(in_unit_range(images, self.facts.pixel_range))
        return mean.float(), std.float()

    def _decode(self, latents: Tensor) -> tuple[Tensor]:
        return (as_images(self._network.decode(latents), self.facts.pixel_range),)


def taef2(params: Taef2Params, *, device: torch.device, facts: DataFacts | None = None) -> NetworkCodec:
    """Build TAEF2 from the user's files. Raises SD-D351 for unusable ones."""
    stated, network = params.facts(facts), Taef2()
    for half, file in zip((network.encoder, network.decoder), params.weight_files(), strict=True):
        load_strictly(half, read_state(file), file)
    return NetworkCodec(frozen(network, device), stated, device)


def tiny_kl(params: TinyKLParams, *, device: torch.device, facts: DataFacts | None = None) -> NetworkCodec:
    """Build the included autoencoder."""
    network, (file,) = TinyKL(), params.weight_files()
    load_strictly(network, read_state(file), file)
    return NetworkCodec(Posterior(frozen(network, device)), params.facts(facts), device)


class Posterior:
    """Return standard deviations where the network returns log-variances."""

    def __init__(self, network: TinyKL) -> None:
        self._network, self.decode = network, network.decode

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self._network.encode(x)
        return mean, (log_variance / 2).exp()


def frozen(network: N, device: torch.device) -> N:
    """Return a network in evaluation mode, without gradients, on its device."""
    return network.eval().requires_grad_(False).to(device)


def read_state(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights. Raises SD-D351 if it holds none; of a pickle, only tensors are read."""
    try:
        return read_weight_file(file, trust_pickle=True).state
    except SdditError as failure:
        problem = failure.problems[0]
        raise error("SD-D351", problem.what, where=str(file), got=problem.got, expect=problem.expect) from failure


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Load every tensor of a network as float32. Raises SD-D351 for names or shapes that are not the network's."""
    known = network.state_dict()
    odd = [name for name, value in known.items() if name not in state or state[name].shape != value.shape]
    odd += [name for name in state if name not in known]
    if odd:
        name = odd[0]
        got = f"{name} {tuple(state[name].shape)}" if name in state else f"no {name}"
        expect = f"{name} {tuple(known[name].shape)}" if name in known else f"no {name}"
        more = f", and {len(odd) - 1} more differences" if len(odd) > 1 else ""
        what = "these are not the weights of the codec"
        raise error("SD-D351", what, where=str(file), got=f"{got}{more}", expect=expect)
    if broken := [name for name, value in state.items() if not bool(value.isfinite().all())]:
        what, expect = "the weights of the codec hold NaN or infinity", "finite numbers"
        raise error("SD-D351", what, where=str(file), got=broken[0], expect=expect)
    network.load_state_dict({name: value.float() for name, value in state.items()})
