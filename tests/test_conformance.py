"""Every component of our own plugins passes the kit that plugin authors run."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sddit
from sddit.data.latent_writing import write_cache
from sddit.interfaces import Component
from sddit.plugins.host import Host
from sddit.testing import check

SMALL: dict[str, dict[str, Any]] = {
    "sddit/declared": {"image": (4, 8, 8), "classes": 3},
    "dit/dit": {"depth": 4, "width": 24, "heads": 3, "patch": 2},
    "masking/mdt": {"depth": 6, "width": 24, "heads": 3, "decoder_depth": 2},
    "discrimination/discrimination": {"prototypes": 16, "hidden": 12, "bottleneck": 8},
}
"""Settings by which a component is tried where its defaults are large."""
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dit/dit": [
        {"cls_token": True},
        {"cls_token": True, "fill": "input", "decoder": {"depth": 1, "width": 12, "heads": 2}},
    ],
    "discrimination/pf_ode": [{"mask_ratio": 0.5}, {"teacher_noise": "same"}],
    "masking/masked": [{"mask_ratio": 0.5}, {"mask_ratio": 0.3, "mask_spread": 0.2}],
    "masking/masked_and_full": [{"mask_spread": 0.2, "label_drop": 0.5}, {"shared_noise": True}],
    "masking/mdt": [{"version": "v1"}],
    "alignment/offset_pair": [
        {"mask_ratio": 0.5, "sigma_data": 0.5},
        {"time": "native", "t_min": 0.01},
        {"offset": 0.0},
    ],
    "alignment/align": [
        {"source": "self", "head": "none", "permute": "tokens"},
        {"source": "clean", "metric": "smooth_l1", "head_layers": 3},
        {"head": "conv", "axis": "token", "target_norm": "sample"},
        {"metric": "mse", "permute": "channels"},
    ],
    "edm/cosine_flow": [{"t_sampling": "logit_normal", "direction": "data"}],
    "edm/flow": [{"t_sampling": "logit_normal"}, {"direction": "data", "time_scale": 1000.0}],
    "edm/denoising": [{"space": "v"}, {"weighting": "min_snr"}, {"tokens": "visible"}],
    "heun/cfg": [
        {"scale": 2.0},
        {"scale": 3.0, "interval": (0.1, 5.0)},
        {"scale": 0.0, "shape": "power_cosine", "power": 2.0},
    ],
    "ddpm/ddpm": [{"betas": "cosine"}, {"respacing": "100,50", "learned_variance": False}],
    "ddpm/hybrid": [{"weighting": "min_snr", "over_views": "sum"}, {"mse_weight": 0.0, "vb_trains": "all"}],
    "ddpm/ancestral": [{"clip": 9.0}],
    "ddpm/ddim": [{"eta": 1.0}],
    "heun/heun": [{"churn": 10.0}, {"coordinates": "native"}],
    "discrimination/discrimination": [{"cls_source": "mean"}, {"shared_head": False}, {"cls_weight": 0.0}],
}
HOST = Host()
WITH_FILES = ("sddit/inception", "sddit/taef2", "sddit/diffusers", "sddit/linear")
"""What needs files of its user's, a cache or minutes: tried in its own tests."""


def components() -> list[Component[Any]]:
    found = (component for registry in HOST.registries.all().values() for component in registry)
    return [component for component in found if component.qualified not in WITH_FILES]


def cases() -> list[Any]:
    """Each component as it is, and in its variants."""
    return [
        pytest.param(c, settings, id=f"{c.kind}-{c.qualified}-{number}")
        for c in components()
        for number, settings in enumerate([{}, *VARIANTS.get(c.qualified, [])])
    ]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own, by flex
@pytest.mark.parametrize(("component", "settings"), cases())
def test_a_component_conforms(component: Component[Any], settings: dict[str, Any], tmp_path: Path) -> None:
    if component.missing():
        pytest.skip(f"needs {', '.join(component.missing())}")
    given = {**SMALL.get(component.qualified, {}), **settings}
    if component.qualified in OWN_IMAGES:
        given |= {"path": str(OWN_IMAGES[component.qualified](tmp_path)), "holdout": 0.3}
    if component.qualified == "sddit/latents":
        given |= {"path": str(latents(tmp_path)), "holdout": 0.3}
    runtime = RUNTIME.get(component.qualified, dict)()
    check(component, runtime=runtime, **given)


def archive(folder: Path) -> Path:
    """The same images in a .zip."""
    images(folder / "images")
    return Path(shutil.make_archive(str(folder / "images"), "zip", folder / "images"))


def shards(folder: Path) -> Path:
    """The same images in a .tar shard."""
    with tarfile.open(folder / "x.tar", "w") as tar:
        for number, file in enumerate(sorted(images(folder / "images").rglob("*.png"))):
            tar.add(file, f"{number}.png")
            label = tarfile.TarInfo(f"{number}.cls")
            label.size = 1
            tar.addfile(label, BytesIO(b"1" if file.parent.name == "dog" else b"0"))
    return folder


def saved(folder: Path) -> Path:
    """The same images as Hugging Face's library saves them."""
    library = import_module("datasets")
    library.disable_progress_bars()
    files = sorted(images(folder / "images").rglob("*.png"))
    columns = {"image": list(map(str, files)), "label": [int(file.parent.name == "dog") for file in files]}
    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])})
    library.Dataset.from_dict(columns, features=features).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def latents(folder: Path) -> Path:
    """Two hundred tiny latents."""
    moments = np.random.default_rng(0).normal(size=(200, 4, 4, 4)).astype(np.float32)
    moments[:, 2:] -= 6  # narrow posteriors
    write_cache(
        folder,
        [(moments, np.arange(200) % 2)],
        layout="mean+logvar",
        scale=1.0,
        encoder="none",
        class_names=("cat", "dog"),
    )
    return folder


def facts_of(dataset: str) -> Any:
    return HOST.registries.datasets.get(dataset).params().facts()  # type: ignore[attr-defined]


RUNTIME: dict[str, Callable[[], dict[str, Any]]] = {
    "sddit/classifier": lambda: {"facts": facts_of("digits")},
    "ddpm/hybrid": lambda: {"schedule": sddit.build("noise_schedules", "ddpm")},
}
"""What a component is built with where the kit's own tiny things are of another kind."""


def images(folder: Path) -> Path:
    """Two classes of twenty small images."""
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8), (12 * number, 200, 90 * (label == "dog"))).save(folder / label / f"{number}.png")
    return folder


OWN_IMAGES: dict[str, Callable[[Path], Path]] = {
    "sddit/folder": images,
    "sddit/zip": archive,
    "sddit/webdataset": shards,
    "sddit/hf": saved,
}
"""Where the data sets of the user's own images find some."""
