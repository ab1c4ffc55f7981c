"""Register what recipes need around a method: data sets, codecs, feature extractors, optimizer, trackers; checks."""

from __future__ import annotations

from sddit import Params, Registry, hookimpl
from sddit.data.declared import DeclaredParams
from sddit.interfaces import Check, Codec, Dataset, FeatureExtractor, Optimizer, Tracker
from sddit_standard.codecs.params import DiffusersParams, LinearParams, Taef2Params, TinyKLParams
from sddit_standard.datasets.params import (
    DigitsParams,
    EmojiParams,
    FashionParams,
    FolderParams,
    HfParams,
    LatentsParams,
    WebdatasetParams,
    ZipParams,
)
from sddit_standard.features.params import ClassifierParams, InceptionParams, MobilenetParams, PixelsParams
from sddit_standard.params import AdamWParams, CsvParams, MuonParams, TensorboardParams


@hookimpl
def register_datasets(registry: Registry[Dataset]) -> None:
    registry.add(
        "digits",
        "sddit_standard.datasets.image_datasets:digits",
        params=DigitsParams,
        summary="Handwritten digits, 8x8 grey, 1437 + 360 images, included.",
    )
    registry.add(
        "fashion",
        "sddit_standard.datasets.image_datasets:fashion",
        params=FashionParams,
        summary="Fashion-MNIST, 28x28 grey: 10,000 + 2,000 images included, or all 70,000 of your own copy.",
        paper="arXiv:1708.07747",
    )
    registry.add(
        "emoji",
        "sddit_standard.datasets.image_datasets:emoji",
        params=EmojiParams,
        summary="Noto emoji, 32x32 or 64x64 in colour, 1476 + 160 images in 8 classes, included; more with flags and "
        "skin variants.",
    )
    registry.add(
        "folder",
        "sddit_standard.datasets.image_datasets:image_files",
        params=FolderParams,
        summary="Your own images, a sub-folder for each class.",
    )
    registry.add(
        "zip",
        "sddit_standard.datasets.image_datasets:image_files",
        params=ZipParams,
        summary="Your own images in a .zip archive, as EDM2 packs them, or in class folders.",
    )
    registry.add(
        "webdataset",
        "sddit_standard.datasets.image_datasets:image_files",
        params=WebdatasetParams,
        summary="Your own images in WebDataset's .tar shards.",
    )
    registry.add(
        "hf",
        "sddit_standard.datasets.image_datasets:image_files",
        params=HfParams,
        summary="Your own images in a data set that Hugging Face's datasets library saved on disk.",
        requires=("datasets",),
    )
    registry.add(
        "latents",
        "sddit_standard.datasets.latent_dataset:latents",
        params=LatentsParams,
        summary="Cached latents of your own encoder: its moments, in safetensors shards.",
    )
    registry.add(
        "declared",
        "sddit.data.preview:declared",
        params=DeclaredParams,
        summary="Shapes without images, to sample models that were trained elsewhere.",
    )


@hookimpl
def register_codecs(registry: Registry[Codec]) -> None:
    registry.add(
        "taef2",
        "sddit_standard.codecs.autoencoders:taef2",
        params=Taef2Params,
        summary="TAEF2, a small autoencoder with the latents of FLUX.2, of your own two files.",
    )
    registry.add(
        "diffusers",
        "sddit_standard.codecs.diffusers_codec:diffusers",
        params=DiffusersParams,
        summary="AutoencoderKL, DC, Tiny or RAE of diffusers, of a folder of yours or of the hub.",
        requires=("diffusers",),
        extra="sddit[diffusers]",
    )
    registry.add(
        "tiny_kl",
        "sddit_standard.codecs.autoencoders:tiny_kl",
        params=TinyKLParams,
        summary="The included autoencoder for 64x64 images, trained on emoji: 16 channels, 8 pixels to a place.",
        paper="arXiv:1312.6114",
    )
    registry.add(
        "linear",
        "sddit_standard.codecs.linear:LinearCodec",
        params=LinearParams,
        summary="Colours of latents by a linear map that their cache holds: previews without a decoder.",
    )


@hookimpl
def register_features(registry: Registry[FeatureExtractor]) -> None:
    registry.add(
        "mobilenet",
        "sddit_standard.features.extractors:mobilenet",
        params=MobilenetParams,
        summary="MobileNetV2 on ImageNet, 96 pooled features. Its distance is not FID, whose network is another.",
        paper="arXiv:1801.04381",
    )
    registry.add(
        "classifier",
        "sddit_standard.features.extractors:classifier",
        params=ClassifierParams,
        summary="A small CNN that knows the classes of digits, fashion or emoji: 64 features, and class accuracy.",
    )
    registry.add(
        "inception",
        "sddit_standard.features.adm:inception",
        params=InceptionParams,
        summary="FID's Inception network, of your own weights file: 2048 features, and ADM's figures. Not yet run with "
        "the original file.",
        paper="arXiv:1706.08500",
        checks={"the published network under made-up weights": "sddit_standard.checks:published_inception"},
    )
    registry.add(
        "pixels",
        "sddit_standard.features.extractors:pixels",
        params=PixelsParams,
        summary="The pixels of a 16x16 thumbnail, 768 features: finds copies of training images that no network "
        "favours.",
    )


@hookimpl
def register_optimizers(registry: Registry[Optimizer]) -> None:
    registry.add(
        "adamw",
        "sddit_standard.optimizers:AdamW",
        params=AdamWParams,
        summary="Adam with decoupled weight decay.",
        paper="arXiv:1711.05101",
    )
    registry.add(
        "muon",
        "sddit_standard.muon:Muon",
        params=MuonParams,
        summary="Orthogonalized momentum for the matrices of blocks, AdamW for all other parameters.",
        paper="arXiv:2502.16982",
        checks={"muon orthogonalizes each matrix and leaves the rest to AdamW": "sddit_standard.checks:muon"},
    )


@hookimpl
def register_trackers(registry: Registry[Tracker]) -> None:
    registry.add(
        "csv",
        "sddit_standard.trackers:Csv",
        params=CsvParams,
        summary="metrics.csv in the run folder, one line a logged step.",
    )
    registry.add(
        "tensorboard",
        "sddit_standard.trackers:Tensorboard",
        params=TensorboardParams,
        summary="TensorBoard event files in the run folder.",
        requires=("tensorboard",),
        extra="sddit[tensorboard]",
    )


@hookimpl
def register_checks(registry: Registry[Check]) -> None:
    for factory, summary in {
        "sddit_standard.checks:draws": "draws are functions of their keys",
        "sddit_standard.checks:masks": "masks hide what they say",
        "sddit_standard.checks:gradients": "gradients in parts and in three precisions",
        "sddit_standard.checks:checkpoints": "a run from a checkpoint is the run itself",
        "sddit.verify.power_ema:posthoc_ema": "averages of weights made of stored ones are the direct ones",
        "sddit.verify.shipped_recipes:leaks": "no recipe sees its target",
    }.items():
        registry.add(factory.partition(":")[2], factory, params=Params, summary=summary)
