"""Train the class CNNs shipped in plugins/sddit_standard/features/assets, on the training splits only.

    python tools/train_classifiers.py [digits] [fashion] [emoji]

On one CPU thread, digits and fashion take about two minutes and emoji about four. A JSON file next to the weights holds
the accuracy on the test split. The network of emoji learns from flags and skin variants too, and is measured without.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sddit.cli.script import run_script
from sddit.data.order import balanced_batch_ids, batch_ids, class_members
from sddit_standard.datasets.image_datasets import ImageSplit, digits, emoji, fashion
from sddit_standard.datasets.params import DigitsParams, EmojiParams, FashionParams
from sddit_standard.features.classifier import ClassCNN, ColourCNN, class_cnn, unit_colour, unit_grey
from sddit_standard.features.extractors import ASSETS

SEED = 0
BATCH = 64


@dataclass(frozen=True)
class Training:
    """Training settings of one classifier.

    The bounds of the random distortions make it judge shapes rather than pixels.
    """

    epochs: int
    lr: float = 2e-3
    rotation: float = 0.15  # radians
    zoom: float = 0.08
    shift: float = 0.08  # of half the image
    noise: float = 0.1  # standard deviation, of images in [-1, 1]
    mirror: bool = False
    background: float = -1.0  # what is outside of an image
    colour: float = 0.0  # bound of the change of contrast; half of it is that of the mixing of channels
    balanced: bool = False
    dropout: float = 0.0
    smoothing: float = 0.05  # of the labels
    mixup: float = 0.0  # parameter of the Beta distribution of mixing (arXiv:1710.09412); 0: none
    weight_decay: float = 0.01
    average: float = 0.0  # decay of the average of the weights; 0: the last weights
    bfloat16: bool = False


SETS = {
    "digits": Training(epochs=60),
    "fashion": Training(epochs=16, lr=3e-3, rotation=0.03, zoom=0.03, shift=0.04, mirror=True),
    "emoji": Training(
        epochs=62,
        lr=3e-3,
        rotation=0.25,
        zoom=0.2,
        shift=0.15,
        mirror=True,
        background=1.0,
        colour=0.3,
        balanced=True,
        dropout=0.3,
        smoothing=0.1,
        mixup=0.4,
        weight_decay=0.1,
        average=0.998,
        bfloat16=True,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", choices=[[], *SETS], metavar="name", help="digits, fashion, emoji; none: all"
    )
    torch.set_num_threads(1)
    for name in parser.parse_args().names or SETS:
        learned, train, test = splits(name)
        network = trained(learned, train, SETS[name]).half().float()  # what is measured is what is stored
        halves = {key: value.half().contiguous() for key, value in network.state_dict().items()}
        save_file(halves, ASSETS / f"classifier_{name}.safetensors")
        known = {
            "image": list(train.facts.image),
            "class_names": list(learned.facts.class_names),
            "data": train.facts.fingerprint,
            "train_accuracy": accuracy(network, train),
            "test_accuracy": accuracy(network, test),
            "test_balanced_accuracy": accuracy(network, test, balanced=True),
            "seed": SEED,
            "batch": BATCH,
            **asdict(SETS[name]),
            "command": f"python tools/train_classifiers.py {name}",
        }
        (ASSETS / f"classifier_{name}.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: train {known['train_accuracy']}, test {known['test_accuracy']}")


def splits(name: str) -> tuple[ImageSplit, ImageSplit, ImageSplit]:
    """Return the images to learn from, and the training and test splits to measure on."""
    if name == "emoji":
        every = emoji(EmojiParams(flags=True, skin_variants=True), split="train")
        return every, emoji(EmojiParams(), split="train"), emoji(EmojiParams(), split="test")
    if name == "digits":
        train, test = digits(DigitsParams(), split="train"), digits(DigitsParams(), split="test")
    else:
        train, test = fashion(FashionParams(), split="train"), fashion(FashionParams(), split="test")
    return train, train, test


def all_of(data: ImageSplit) -> tuple[Tensor, Tensor]:
    """uint8 images [n, 3, H, W] as an evaluator gets them, and labels [n]."""
    x, labels = data.fetch(range(len(data)))
    return data.to_images(x), labels


def trained(learned: ImageSplit, train: ImageSplit, how: Training) -> ClassCNN | ColourCNN:
    """Minimise the cross-entropy of distorted images of `learned`; then record mean and standard deviation of the
    features on `train`.
    """
    torch.manual_seed(SEED)
    network = class_cnn(learned.facts.image, learned.facts.num_classes, how.dropout)
    if how.bfloat16:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decay = get_ema_multi_avg_fn(how.average)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(network, multi_avg_fn=decay, use_buffers=True)
    steps = how.epochs * len(learned) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=how.lr, weight_decay=how.weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps))
    (images, labels), members = all_of(learned), class_members(learned.labels().numpy())
    to_unit = unit_grey if learned.facts.image[0] == 1 else unit_colour
    for step in range(steps):
        ids, _ = (
            balanced_batch_ids(SEED, step, BATCH, members)
            if how.balanced
            else batch_ids(SEED, step, BATCH, len(images))
        )
        x, targets = distorted(to_unit(images[ids]), how), labels[ids]
        if how.mixup:
            x, targets = mixed(x, F.one_hot(targets, learned.facts.num_classes).float(), how.mixup)
        with torch.autocast("cpu", torch.bfloat16, enabled=how.bfloat16):
            _, scores = network(x.contiguous(memory_format=torch.channels_last) if how.bfloat16 else x)
        loss = F.cross_entropy(scores.float(), targets, label_smoothing=how.smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        averaged.update_parameters(network)
        if step % 200 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    if how.average:
        network.load_state_dict(averaged.module.state_dict())
    network.eval()
    with torch.no_grad():
        features = torch.cat([network(chunk)[0] for chunk in torch.split(all_of(train)[0], 500)])
        std, mean = torch.std_mean(features, dim=0)
    network.mean.copy_(mean)
    network.std.copy_(std)
    return network


def mixed(x: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mix each image [n, C, H, W] and its target [n, classes] with those of another image of the batch."""
    fraction = torch.distributions.Beta(alpha, alpha).sample((len(x), 1))
    other = torch.randperm(len(x))
    targets = fraction * targets + (1 - fraction) * targets[other]
    fraction = fraction[:, :, None, None]
    return fraction * x + (1 - fraction) * x[other], targets


def distorted(x: Tensor, how: Training) -> Tensor:
    """Images [n, C, H, W] turned, zoomed, shifted, mirrored, recoloured and made noisy, each by its own draw."""

    def draw(bound: float) -> Tensor:
        return (2 * torch.rand(len(x)) - 1) * bound

    angle, zoom = draw(how.rotation), 1 + draw(how.zoom)
    side = torch.where(torch.rand(len(x)) < 0.5, -1.0, 1.0) if how.mirror else torch.ones(len(x))
    rows = [
        torch.stack([side * zoom * angle.cos(), -zoom * angle.sin(), draw(how.shift)], dim=1),
        torch.stack([side * zoom * angle.sin(), zoom * angle.cos(), draw(how.shift)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    turned = F.grid_sample(x - how.background, grid, align_corners=False) + how.background
    if how.colour:
        mixing = torch.eye(3) + (2 * torch.rand(len(x), 3, 3) - 1) * how.colour / 2
        turned = torch.einsum("nij,njhw->nihw", mixing / mixing.sum(dim=2, keepdim=True), turned)
        turned = 1 - (1 - turned) * (1 + draw(how.colour))[:, None, None, None]  # white stays white
    return turned + how.noise * torch.randn_like(turned) * torch.rand(len(x), 1, 1, 1)


@torch.no_grad()
def accuracy(network: ClassCNN | ColourCNN, data: ImageSplit, *, balanced: bool = False) -> float:
    """Return the fraction of images whose class is seen; `balanced`: the mean of the fractions of the classes."""
    images, labels = all_of(data)
    right = torch.cat([network(chunk)[1].argmax(dim=1) for chunk in torch.split(images, 500)]) == labels
    parts = [right[labels == label] for label in range(data.facts.num_classes)] if balanced else [right]
    return round(sum(part.double().mean().item() for part in parts) / len(parts), 4)


if __name__ == "__main__":
    run_script(main)
