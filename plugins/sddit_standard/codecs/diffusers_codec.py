"""Load an autoencoder of diffusers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sddit.errors import error
from sddit.interfaces import DataFacts
from sddit_standard.codecs.autoencoders import NetworkCodec, frozen
from sddit_standard.codecs.params import DiffusersParams

NOISY = ("xformers", "diffusers")  # loggers that warn of packages which are not used here


def diffusers(params: DiffusersParams, *, device: torch.device, facts: DataFacts | None = None) -> NetworkCodec:
    """Build the autoencoder of a folder. Raises SD-D351 unless all its weights are there and belong to it."""
    stated, folder, name = params.facts(facts), params.folder(), params.config()["_class_name"]
    try:
        with quiet():
            kind = getattr(import_module("diffusers"), name)
            network, report = kind.from_pretrained(
                str(folder),
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                torch_dtype=torch.float32,
                output_loading_info=True,
            )
    except (AttributeError, ImportError, OSError, ValueError, TypeError, RuntimeError, SafetensorError) as failure:
        got = shorten(f"{type(failure).__name__}: {failure}", 200)
        what, expect = f"diffusers cannot load this {name}", "config and weights that belong together"
        raise error("SD-D351", what, where=str(folder), got=got, expect=expect) from failure
    if odd := [f"{kind}: {names[0]}" for kind, names in report.items() if names]:
        what, expect = "these are not the weights of the codec", "every tensor of its network and no others"
        raise error("SD-D351", what, where=str(folder), got="; ".join(map(str, odd))[:200], expect=expect)
    return NetworkCodec(DiffusersAutoencoder(frozen(network, device)), stated, device)


class DiffusersAutoencoder:
    """An `Autoencoder` of a network of diffusers."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self._network.encode(x)
        if hasattr(encoded, "latent_dist"):
            return encoded.latent_dist.mean, encoded.latent_dist.std
        mean = encoded.latents if hasattr(encoded, "latents") else encoded.latent
        return mean, torch.zeros_like(mean)

    def decode(self, z: Tensor) -> Tensor:
        return torch.as_tensor(self._network.decode(z).sample)


@contextmanager
def quiet() -> Iterator[None]:
    """Import and load without warnings of packages that are not used."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
