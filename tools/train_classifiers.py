"""Train the class CNNs shipped in plugins/sddit_standard/features/assets, on the training splits only.

    python tools/train_classifiers.py [digits] [fashion]

On one CPU thread both take about two minutes. A JSON file next to the weights holds the accuracy on the test split.
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

from sddit.cli.script import run_script
from sddit.data.order import batch_ids
from sddit_standard.datasets.image_datasets import ImageSplit, digits, fashion
from sddit_standard.datasets.params import DigitsParams, FashionParams
from sddit_standard.features.classifier import ClassCNN, unit_grey
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


SETS = {
    "digits": Training(epochs=60),
    "fashion": Training(epochs=16, lr=3e-3, rotation=0.03, zoom=0.03, shift=0.04, mirror=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *SETS], metavar="name", help="digits, fashion; none: both")
    torch.set_num_threads(1)
    for name in parser.parse_args().names or SETS:
        train, test = splits(name)
        network = trained(train, SETS[name]).half().float()  # what is measured is what is stored
        halves = {key: value.half().contiguous() for key, value in network.state_dict().items()}
        save_file(halves, ASSETS / f"classifier_{name}.safetensors")
        known = {
            "image": list(train.facts.image),
            "class_names": list(train.facts.class_names),
            "data": train.facts.fingerprint,
            "train_accuracy": accuracy(network, train),
            "test_accuracy": accuracy(network, test),
            "seed": SEED,
            "batch": BATCH,
            **asdict(SETS[name]),
            "command": f"python tools/train_classifiers.py {name}",
        }
        (ASSETS / f"classifier_{name}.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: train {known['train_accuracy']}, test {known['test_accuracy']}")


def splits(name: str) -> tuple[ImageSplit, ImageSplit]:
    if name == "digits":
        return digits(DigitsParams(), split="train"), digits(DigitsParams(), split="test")
    return fashion(FashionParams(), split="train"), fashion(FashionParams(), split="test")


def all_of(data: ImageSplit) -> tuple[Tensor, Tensor]:
    """uint8 images [n, 3, H, W] as an evaluator gets them, and labels [n]."""
    x, labels = data.fetch(range(len(data)))
    return data.to_images(x), labels


def trained(train: ImageSplit, how: Training) -> ClassCNN:
    """Minimise the cross-entropy of distorted training images; then record mean and standard deviation of the
    features.
    """
    torch.manual_seed(SEED)
    _, height, width = train.facts.image
    network = ClassCNN(height, width, train.facts.num_classes)
    steps = how.epochs * len(train) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=how.lr, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps))
    images, labels = all_of(train)
    for step in range(steps):
        ids, _ = batch_ids(SEED, step, BATCH, len(train))
        _, scores = network(distorted(unit_grey(images[ids]), how))
        loss = F.cross_entropy(scores, labels[ids], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        if step % 200 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}")
    with torch.no_grad():
        std, mean = torch.std_mean(torch.cat([network(chunk)[0] for chunk in torch.split(images, 500)]), dim=0)
    network.mean.copy_(mean)
    network.std.copy_(std)
    return network


def distorted(x: Tensor, how: Training) -> Tensor:
    """Images [n, 1, H, W] turned, zoomed, shifted, mirrored and made noisy at random, each by its own draw."""

    def draw(bound: float) -> Tensor:
        return (2 * torch.rand(len(x)) - 1) * bound

    angle, zoom = draw(how.rotation), 1 + draw(how.zoom)
    side = torch.where(torch.rand(len(x)) < 0.5, -1.0, 1.0) if how.mirror else torch.ones(len(x))
    rows = [
        torch.stack([side * zoom * angle.cos(), -zoom * angle.sin(), draw(how.shift)], dim=1),
        torch.stack([side * zoom * angle.sin(), zoom * angle.cos(), draw(how.shift)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    turned = F.grid_sample(x + 1, grid, align_corners=False) - 1  # black outside
    return turned + how.noise * torch.randn_like(turned) * torch.rand(len(x), 1, 1, 1)


@torch.no_grad()
def accuracy(network: ClassCNN, data: ImageSplit) -> float:
    images, labels = all_of(data)
    seen = torch.cat([network(chunk)[1].argmax(dim=1) for chunk in torch.split(images, 500)])
    return round((seen == labels).double().mean().item(), 4)


if __name__ == "__main__":
    run_script(main)
