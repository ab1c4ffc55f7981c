"""Train the network of the codec `tiny_kl` on the training split of the embedded emoji, 64x64.

    python tools/train_tiny_kl.py --state FOLDER [--steps 1700]

It takes 10 to 30 minutes on one CPU thread. The folder holds the state: after an interruption the same command resumes
the training, with the same result. The weights are written to plugins/sddit_standard/codecs/assets in half precision,
and next to them what is measured on the test split.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import sddit
from sddit.cli.script import run_script
from sddit_standard.codecs.tiny_network import TinyKL

ASSETS = Path(__file__).parents[1] / "plugins" / "sddit_standard" / "codecs" / "assets"
DATA = {"size": 64}
SEED = 0
BATCH = 16
LR = 2e-3
WARMUP = 100  # steps
KL_WEIGHT = 1e-3  # of the Kullback-Leibler divergence from a standard normal, per number of a latent
EDGE_WEIGHT = 0.5  # of the L1 distance of differences between neighbouring pixels, at three scales
EMA = 0.998
SHIFT = 6  # pixels by which an image is moved at most
SAVE_EVERY = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="folder of the training's state")
    parser.add_argument("--steps", type=int, default=1700, help="optimizer steps in all")
    parser.add_argument("--debug", action="store_true", help="show full tracebacks of errors")
    given = parser.parse_args()
    torch.set_num_threads(1)
    network = trained(images_of("train"), given.steps, given.state)
    network = network.half().float()  # what is measured is what is stored
    halves = {key: value.half().contiguous() for key, value in network.state_dict().items()}
    ASSETS.mkdir(exist_ok=True)
    save_file(halves, ASSETS / "tiny_kl.safetensors")
    facts = {
        "data": sddit.build("datasets", "emoji", DATA, split="train").facts.fingerprint,
        **latent_statistics(network, images_of("train")),
        "test_psnr": round(psnr(network, images_of("test")), 2),
        "train_psnr": round(psnr(network, images_of("train")), 2),
        "seed": SEED,
        "steps": given.steps,
        "batch": BATCH,
        "lr": LR,
        "kl_weight": KL_WEIGHT,
        "edge_weight": EDGE_WEIGHT,
        "command": f"python tools/train_tiny_kl.py --state FOLDER --steps {given.steps}",
    }
    (ASSETS / "tiny_kl.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts))


def images_of(split: str) -> Tensor:
    """Return the images of a split of the emoji, uint8 [n, 3, 64, 64]."""
    data = sddit.build("datasets", "emoji", DATA, split=split)
    images, _ = data.fetch(range(len(data)))
    return torch.as_tensor(data.to_images(images))


def trained(images: Tensor, steps: int, folder: Path) -> TinyKL:
    """Return the average of the weights over the last steps, in evaluation mode."""
    torch.manual_seed(SEED)
    network, average = TinyKL(), TinyKL()
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=1e-4, betas=(0.9, 0.99))
    state = folder / "state.pt"
    parts: dict[str, Any] = {"network": network, "average": average, "optimizer": optimizer}
    first = 0
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        first = saved.pop("step")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = (
                LR * min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
            )
        draws = torch.Generator().manual_seed(SEED * 10**9 + step)
        loss, terms = objective(network, batch_of(images, draws), draws)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        update(average, network, min(EMA, (1 + step) / (10 + step)))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(
                {**{k: part.state_dict() for k, part in parts.items()}, "step": step + 1}, state.with_suffix(".tmp")
            )
            state.with_suffix(".tmp").replace(state)
            print(f"step {step + 1} of {steps}: " + ", ".join(f"{k} {v:.4f}" for k, v in terms.items()), flush=True)
    return average.eval().requires_grad_(False)


def batch_of(images: Tensor, draws: torch.Generator) -> Tensor:
    """Return images in [-1, 1], drawn at random, each moved by a few pixels, half of them mirrored.

    Half of them are recoloured, by a random gain and offset of each channel: emoji are on white, other images are not.
    """
    chosen = images[torch.randint(len(images), (BATCH,), generator=draws)].float() / 127.5 - 1
    mirrored = torch.rand(BATCH, generator=draws) < 0.5
    chosen = torch.where(mirrored[:, None, None, None], chosen.flip(3), chosen)
    gain, offset = 2 * torch.rand(2, BATCH, 3, 1, 1, generator=draws) - 1
    recoloured = torch.rand(BATCH, generator=draws) < 0.5
    chosen = torch.where(recoloured[:, None, None, None], gain * chosen + offset * (1 - gain.abs()), chosen)
    side = chosen.shape[-1]
    padded = F.pad(chosen, (SHIFT, SHIFT, SHIFT, SHIFT), mode="replicate")
    moves = torch.randint(2 * SHIFT + 1, (BATCH, 2), generator=draws).tolist()
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, moves, strict=True)])


def objective(network: TinyKL, x: Tensor, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch and its terms."""
    noise = torch.randn(len(x), 16, x.shape[2] // 8, x.shape[3] // 8, generator=draws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, log_variance = network.encode(x)
        found = network.decode(mean + (log_variance / 2).exp() * noise).float()
    mean, log_variance = mean.float(), log_variance.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    pixels, edges = (found - x).abs().mean(), edge_distance(found, x)
    loss = pixels + EDGE_WEIGHT * edges + KL_WEIGHT * divergence
    return loss, {"l1": pixels.item(), "edges": edges.item(), "kl": divergence.item()}


def edge_distance(found: Tensor, x: Tensor) -> Tensor:
    """Return the mean L1 distance of differences between neighbouring pixels, of images and of their halvings."""
    total = x.new_zeros(())
    difference = found - x
    for _ in range(3):
        total = total + difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return total / 6


@torch.no_grad()
def update(average: nn.Module, network: nn.Module, kept: float) -> None:
    for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(weight, 1 - kept)


@torch.no_grad()
def psnr(network: TinyKL, images: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB of images that are encoded to the mean, decoded and rounded."""
    ratios = []
    for chunk in torch.split(images, 64):
        mean, _ = network.encode(chunk.float() / 127.5 - 1)
        found = ((network.decode(mean) + 1) * 127.5).round().clamp(0, 255)
        error = ((found - chunk.float()) / 255).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
        ratios.append(-10 * error.log10())
    return float(torch.cat(ratios).mean())


@torch.no_grad()
def latent_statistics(network: TinyKL, images: Tensor) -> dict[str, float]:
    """Return shift and scale that bring drawn latents of the training split to mean 0 and standard deviation 1."""
    encoded = [network.encode(chunk.float() / 127.5 - 1) for chunk in torch.split(images, 64)]
    mean = torch.cat([one for one, _ in encoded]).double()
    variance = torch.cat([one for _, one in encoded]).double().exp()
    std = math.sqrt(float(mean.var()) + float(variance.mean()))
    return {"scale": float(f"{1 / std:.4g}"), "shift": float(f"{float(mean.mean()):.4g}")}


if __name__ == "__main__":
    run_script(main)
