"""Inception-v3 (arXiv:1512.00567) as the Frechet Inception distance uses it, for the weights file of the user's.

The file is `pt_inception-2015-12-05`, a state dict of the network that arXiv:1706.08500 took its features from. That
network is not the common Inception-v3: it has 1008 outputs, its average pools leave the padding out, and the last block
pools by the maximum.
"""

from __future__ import annotations

import pickle
import zipfile
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from sddit.data.full_precision import full_precision
from sddit.errors import SdditError, error

SIDE = 299
POOLED, CLASSES = 2048, 1008
SPATIAL = 7  # channels of the spatial features of sFID (arXiv:2103.03841), of 17x17 places
PLACES = SPATIAL * 17**2
CHUNK = 32  # images of one forward pass

Size = int | tuple[int, int]
Steps = dict[str, tuple[int, Size]]
"""The convolutions of a block by their names in the file: (channels, kernel). `branch5x5_2` follows `branch5x5_1`;
`branch3x3_2a` and `branch3x3_2b` see the same and are joined."""


class Seen(NamedTuple):
    """Outputs of the network for images."""

    pooled: Tensor  # [n, 2048]
    spatial: Tensor  # [n, 2023], 7 channels of 17x17 places, channels last
    classes: Tensor  # [n, 1008] probabilities, by logits without bias as the Inception score has always been taken


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, width: int, out: int, kernel: Size, stride: int = 1, *, padded: bool = True) -> None:
        super().__init__()
        height, across = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, across // 2) if padded else 0
        self.conv = nn.Conv2d(width, out, (height, across), stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Parallel branches, joined along channels; the last is a pool."""

    def __init__(self, width: int, steps: Steps, *, pool: int = 0, peak: bool = False) -> None:
        """`pool`: channels after the pool; 0: the block halves the image, by its pool and by the last step of each
        branch. `peak`: the pool takes the maximum."""
        super().__init__()
        self.halves, self.peak = pool == 0, peak
        by_branch = groupby(steps, key=lambda name: name.partition("_")[0])
        self.branches = [[list(names) for _, names in groupby(branch, key=_step)] for _, branch in by_branch]
        for branch in self.branches:
            inside = width
            for names in branch:
                last = self.halves and names is branch[-1]
                for name in names:
                    out, kernel = steps[name]
                    self.add_module(name, Convolution(inside, out, kernel, 2 if last else 1, padded=not last))
                inside = out
        if pool:
            self.branch_pool = Convolution(width, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(self.run(branch, x) for branch in self.branches), self.pooled(x)], dim=1)

    def run(self, branch: list[list[str]], x: Tensor) -> Tensor:
        """x through the steps of one branch."""
        for names in branch:
            x = torch.cat([self.get_submodule(name)(x) for name in names], dim=1)
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """x through the pool."""
        if self.halves:
            return F.max_pool2d(x, 3, stride=2)
        if self.peak:
            x = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return torch.as_tensor(self.branch_pool(x))


def _step(name: str) -> str:
    return name.rstrip("ab")


# The blocks of arXiv:1512.00567, figures 5 (with 5x5 kernels), 10, 6 (n = 7), 10 again and 7

FIRST: Steps = {
    "branch1x1": (64, 1),
    "branch5x5_1": (48, 1),
    "branch5x5_2": (64, 5),
    "branch3x3dbl_1": (64, 1),
    "branch3x3dbl_2": (96, 3),
    "branch3x3dbl_3": (96, 3),
}
HALVE_35: Steps = {
    "branch3x3": (384, 3),
    "branch3x3dbl_1": (64, 1),
    "branch3x3dbl_2": (96, 3),
    "branch3x3dbl_3": (96, 3),
}
HALVE_17: Steps = {
    "branch3x3_1": (192, 1),
    "branch3x3_2": (320, 3),
    "branch7x7x3_1": (192, 1),
    "branch7x7x3_2": (192, (1, 7)),
    "branch7x7x3_3": (192, (7, 1)),
    "branch7x7x3_4": (192, 3),
}
LAST: Steps = {
    "branch1x1": (320, 1),
    "branch3x3_1": (384, 1),
    "branch3x3_2a": (384, (1, 3)),
    "branch3x3_2b": (384, (3, 1)),
    "branch3x3dbl_1": (448, 1),
    "branch3x3dbl_2": (384, 3),
    "branch3x3dbl_3a": (384, (1, 3)),
    "branch3x3dbl_3b": (384, (3, 1)),
}


def middle(inner: int) -> Steps:
    """Return a block of 17x17 places, whose 7x7 kernels are a row and a column, of `inner` channels within."""
    return {
        "branch1x1": (192, 1),
        "branch7x7_1": (inner, 1),
        "branch7x7_2": (inner, (1, 7)),
        "branch7x7_3": (192, (7, 1)),
        "branch7x7dbl_1": (inner, 1),
        "branch7x7dbl_2": (inner, (7, 1)),
        "branch7x7dbl_3": (inner, (1, 7)),
        "branch7x7dbl_4": (inner, (7, 1)),
        "branch7x7dbl_5": (192, (1, 7)),
    }


class Inception(nn.Module):
    """[n, 3, 299, 299] in [-1, 1] -> `Seen`. Its parts have their names in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padded=False)
        self.Mixed_5b = Mixed(192, FIRST, pool=32)
        self.Mixed_5c = Mixed(256, FIRST, pool=64)
        self.Mixed_5d = Mixed(288, FIRST, pool=64)
        self.Mixed_6a = Mixed(288, HALVE_35)
        self.Mixed_6b = Mixed(768, middle(128), pool=192)
        self.Mixed_6c = Mixed(768, middle(160), pool=192)
        self.Mixed_6d = Mixed(768, middle(160), pool=192)
        self.Mixed_6e = Mixed(768, middle(192), pool=192)
        self.Mixed_7a = Mixed(768, HALVE_17)
        self.Mixed_7b = Mixed(1280, LAST, pool=192)
        self.Mixed_7c = Mixed(2048, LAST, pool=192, peak=True)
        self.fc = nn.Linear(POOLED, CLASSES)

    def forward(self, x: Tensor) -> Seen:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        spatial = (
            x[:, :SPATIAL].permute(0, 2, 3, 1).flatten(1)
        )  # `mixed_6/conv` of the TensorFlow graph begins the join
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        pooled = x.mean(dim=(2, 3))
        return Seen(pooled, spatial, F.linear(pooled, self.fc.weight).softmax(dim=1))


def prepared(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [n, 3, H, W] -> what the network takes, in `dtype`, resized as its TensorFlow graph does.

    Bilinear between the pixels at i H / 299, without half a pixel's shift and without smoothing before: a resize of
    another kind moves the distance.
    """
    x = images.to(dtype)
    for axis in (2, 3):
        at = torch.arange(SIDE, dtype=torch.float64, device=x.device) * (x.shape[axis] / SIDE)
        low = at.floor().long()
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = SIDE
        share = (at - low).to(dtype).view(shape)
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
    return (x - 128) / 128


def load_inception(path: Path, device: torch.device) -> tuple[Inception, str]:
    """Return the network with the weights of a file, and the file's sha256. SD-T940 for a file that is something else.

    Weights alone are read, and nothing in the file is run; TorchScript is refused unopened.
    """
    network = Inception()
    state = _state(path)
    known = network.state_dict()
    counters = {name for name in known if name.endswith("num_batches_tracked")}  # some copies of the file have them
    missing = sorted(known.keys() - state.keys() - counters)
    odd = sorted(name for name, value in state.items() if name not in known or value.shape != known[name].shape)
    if missing or odd:
        what = f"no {missing[0]}" if missing else f"{odd[0]} {tuple(state[odd[0]].shape)}"
        raise _refusal(path, f"{what}, and {len(missing) + len(odd) - 1} more such")
    network.load_state_dict({**known, **{name: value.float() for name, value in state.items()}})
    return network.eval().requires_grad_(False).to(device), sha256(path.read_bytes()).hexdigest()


def _state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise _refusal(path, "a TorchScript program")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as fault:
        raise _refusal(path, fault.strerror or str(fault)) from fault
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError) as fault:
        raise _refusal(path, "a file that holds no weights") from fault
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _refusal(path, "something else than named tensors")
    return state


def _refusal(path: Path, got: str) -> SdditError:
    return error(
        "SD-T940",
        "these are not the weights of FID's Inception network",
        where=str(path),
        got=got,
        expect="pt_inception-2015-12-05, a state dict of Inception-v3 with 1008 classes",
    )


@torch.no_grad()
def look(network: Inception, images: Tensor, device: torch.device) -> Seen:
    """Run the network on images, uint8 [n, 3, H, W], in chunks and in the type of its weights; returned on the CPU."""
    dtype = network.fc.weight.dtype
    with torch.autocast(device.type, enabled=False), full_precision():
        seen = [network(prepared(chunk.to(device), dtype)) for chunk in torch.split(images, CHUNK)]
    return Seen(*(torch.cat([part.cpu() for part in column]) for column in zip(*seen, strict=True)))
