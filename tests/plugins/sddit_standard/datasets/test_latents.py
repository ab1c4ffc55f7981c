"""Cached latents: what is written is read, what is drawn is keyed, and what is wrong is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from sddit.data.latent_statistics import LOG_VARIANCE, mean_and_std
from sddit.data.latent_writing import write_cache
from sddit.diffusion.draws import KeyedDraws
from sddit.errors import SdditError
from sddit.interfaces import DrawnDataset
from sddit.plugins.host import Host
from sddit.recipes.resolve import resolve
from sddit.testing import check
from sddit.testing.toys.plugin import TOY_RECIPE
from sddit.training.build import build_session
from sddit.training.inputs import make_batch
from sddit.training.session import Session
from sddit_standard.datasets.params import LatentsParams

ROOT = Path(__file__).parents[4]
SCALE = 0.18215
NAMES = ("ant", "bee", "cow")
ROWS, C, SIDE = 40, 4, 8


def moments(rows: int = ROWS, *, seed: int = 0, dtype: Any = np.float32) -> NDArray[Any]:
    """Means like those of Stable Diffusion's VAE, and log-variances of stds from 0.05 to 3."""
    rng = np.random.default_rng(seed)
    middle, spread = np.array([5.81, 3.25, 0.12, -2.15]), np.array([4.17, 4.62, 3.71, 3.28])
    mean = middle[:, None, None] + spread[:, None, None] * rng.standard_normal((rows, C, SIDE, SIDE))
    logvar = rng.uniform(2 * np.log(0.05), 2 * np.log(3.0), mean.shape)
    return np.concatenate([mean, logvar], axis=1).astype(dtype)


def labels(rows: int = ROWS) -> NDArray[np.int64]:
    return np.arange(rows, dtype=np.int64) % len(NAMES)


def written(folder: Path, parts: Any = None, **more: Any) -> Path:
    settings: dict[str, Any] = {"layout": "mean+logvar", "scale": SCALE, "encoder": "sd-vae", "class_names": NAMES}
    write_cache(folder, [(moments(), labels())] if parts is None else parts, **{**settings, **more})
    return folder


def split(folder: Path, name: str = "train", **settings: Any) -> Any:
    from sddit_standard.datasets.latent_dataset import latents

    return latents(LatentsParams(path=str(folder), **settings), split=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("layout", ["mean+logvar", "mean+std"])
def test_what_is_written_is_read(tmp_path: Path, dtype: Any, layout: Any) -> None:
    stored = moments(dtype=dtype)
    if layout == "mean+std":
        stored[:, C:] = np.exp(stored[:, C:] / 2)
    parts = [(stored[:7], labels()[:7]), (stored[7:30], labels()[7:30]), (stored[30:], labels()[30:])]
    data = split(written(tmp_path / "x", parts, layout=layout))
    ids = [39, 0, 6, 7, 29, 30, 12]
    mean, got = data.fetch(ids)
    assert len(data) == ROWS
    assert got.tolist() == labels()[ids].tolist()
    assert torch.equal(mean, torch.from_numpy(stored[ids, :C].astype(np.float32)) * SCALE)
    expected = mean_and_std(stored[ids], layout)[1] * SCALE
    torch.testing.assert_close(data.spread(ids).double(), torch.from_numpy(expected), rtol=1e-5, atol=0)


def test_a_log_variance_is_clamped_as_the_vae_does_it(tmp_path: Path) -> None:
    stored = moments()
    stored[0, C:], stored[1, C:] = 1000.0, -1000.0
    spread = split(written(tmp_path / "x", [(stored, labels())], allow_implausible=True)).spread([0, 1])
    for row, bound in enumerate(LOG_VARIANCE[::-1]):
        assert torch.allclose(spread[row], torch.tensor(SCALE * np.exp(bound / 2)).float(), rtol=1e-5, atol=0)


def test_the_index_alone_states_the_facts(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", [(moments(20, seed=1), labels(20)), (moments(30, seed=2), labels(30))])
    everything = np.concatenate([moments(20, seed=1), moments(30, seed=2)]).astype(np.float64)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    mean, std = (SCALE * part for part in mean_and_std(everything, "mean+logvar"))
    drawn, middle = (LatentsParams(path=str(folder), posterior=p).facts() for p in ("sample", "mean"))
    axes = (0, 2, 3)
    assert (drawn.image, drawn.class_names, drawn.train_size) == ((C, SIDE, SIDE), NAMES, 50)
    assert np.allclose(drawn.mean, mean.mean(axes), rtol=1e-12)
    assert np.allclose(middle.std, mean.std(axes), rtol=1e-12)
    assert np.allclose(drawn.std, np.sqrt(mean.var(axes) + (std**2).mean(axes)), rtol=1e-12)
    assert "latents of sd-vae" in drawn.source
    assert LatentsParams(path=str(folder), labels=False).facts().class_names == ()
    with pytest.raises(SdditError, match=r"SD-D342(.|\n)*missing"):
        split(folder)


def test_moments_far_from_zero_lose_no_digits(tmp_path: Path) -> None:
    stored = moments().astype(np.float32)
    stored[:, :C] += 1e4
    parts = [(stored[i : i + 5], labels()[i : i + 5]) for i in range(0, ROWS, 5)]
    facts = LatentsParams(path=str(written(tmp_path / "x", parts)), posterior="mean").facts()
    assert np.allclose(facts.std, SCALE * stored[:, :C].astype(np.float64).std(axis=(0, 2, 3)), rtol=1e-9)


def test_the_test_split_is_held_out_by_place_and_never_moves(tmp_path: Path) -> None:
    short, long = moments(400)[:, :, :1, :1], moments(600)[:, :, :1, :1]
    first = written(tmp_path / "a", [(short, labels(400))])
    longer = written(tmp_path / "b", [(short, labels(400)), (long, labels(600))])
    rows = {
        path: [split(path, name, holdout=0.2)._rows.tolist() for name in ("train", "test")] for path in (first, longer)
    }
    assert sorted(rows[longer][0] + rows[longer][1]) == list(range(1000))
    assert [[row for row in part if row < 400] for part in rows[longer]] == rows[first]
    assert 0.1 < len(rows[first][1]) / 400 < 0.3
    assert split(first, "test")._rows.tolist() == []


def test_an_image_and_its_mirror_image_stay_in_one_split(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", [(moments(400)[:, :, :1, :1], labels(400))], flip="both")
    held_out = split(folder, "test", holdout=0.3)._rows.tolist()
    assert held_out
    assert held_out[1::2] == [row + 1 for row in held_out[::2]]
    with pytest.raises(SdditError, match=r"SD-D341(.|\n)*even number"):
        LatentsParams(path=str(written(tmp_path / "odd", [(moments(5), labels(5))], flip="both"))).facts()


def test_normalised_latents_have_mean_zero_and_std_one_half(tmp_path: Path) -> None:
    data = split(written(tmp_path / "x"), normalize="standard")
    x = data.fetch(range(ROWS))[0] + data.spread(range(ROWS)) * torch.randn(
        ROWS, C, SIDE, SIDE, generator=torch.Generator().manual_seed(0)
    )
    assert x.mean(dim=(0, 2, 3)).abs().max() < 0.03
    assert (x.std(dim=(0, 2, 3)) - 0.5).abs().max() < 0.02
    plain = split(tmp_path / "x")
    assert torch.equal(plain.to_images(plain.fetch([0])[0]), data.to_images(data.fetch([0])[0]))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_are_three_channels_about_their_mean(tmp_path: Path, channels: int) -> None:
    stored = moments()[:, [*range(channels), *range(C, C + channels)]]
    data = split(written(tmp_path / "x", [(stored, labels())], scale=0.15), posterior="mean")
    mean = torch.tensor(data.facts.mean)[:, None, None].expand(channels, SIDE, SIDE)
    grey = data.to_images(mean[None])
    assert grey.shape == (1, 3, SIDE, SIDE)
    assert set(grey.unique().tolist()) <= {127, 128}
    assert data.to_images(mean[None] + 100).min() == 255


@pytest.fixture
def session_of(tmp_path: Path, toys: Host) -> Callable[..., Session]:
    """A session of toys on cached latents."""
    folder = written(tmp_path / "latents")
    recipe = TOY_RECIPE.replace('[dataset]\nname = "toy"', f'[dataset]\nname = "latents"\npath = "{folder}"')
    (tmp_path / "toy.toml").write_text(recipe)

    def make(*overrides: str) -> Session:
        return build_session(resolve(tmp_path / "toy.toml", overrides), torch.device("cpu"))

    return make


def batch_at(session: Session, step: int, ids: list[int], epoch: int = 0) -> torch.Tensor:
    draws = KeyedDraws(session.recipe.seed, step, torch.tensor(ids), torch.full((len(ids),), epoch))
    return make_batch(session, ids, draws).x0


def test_a_posterior_is_drawn_for_each_visit_and_keyed_by_image(session_of: Callable[..., Session]) -> None:
    session = session_of()
    assert isinstance(session.dataset, DrawnDataset)
    x = batch_at(session, 3, [4, 9, 2])
    assert torch.equal(x, batch_at(session, 3, [4, 9, 2]))
    assert torch.equal(x[[2, 0]], batch_at(session, 3, [2, 4]))
    assert not torch.equal(x, batch_at(session, 4, [4, 9, 2]))
    assert not torch.equal(x, batch_at(session, 3, [4, 9, 2], epoch=1))
    means = session_of("dataset.posterior=mean")
    assert not isinstance(means.dataset, DrawnDataset)
    assert torch.equal(batch_at(means, 3, [4, 9, 2]), session.dataset.fetch([4, 9, 2])[0])


def test_draws_have_the_stated_distribution(session_of: Callable[..., Session]) -> None:
    session = session_of()
    assert isinstance(session.dataset, DrawnDataset)
    ids = [5] * 600
    draws = KeyedDraws(0, 0, torch.tensor(ids), torch.arange(600))
    unit = (make_batch(session, ids, draws).x0 - session.dataset.fetch([5])[0]) / session.dataset.spread([5])
    assert unit.mean().abs() < 0.01
    assert (unit.std() - 1).abs() < 0.01
    assert (unit.mean(dim=0).abs() < 5 / 600**0.5).all()


def test_latents_that_are_mirrored_already_are_not_mirrored_again(
    session_of: Callable[..., Session], tmp_path: Path
) -> None:
    session_of("dataset.flip=true")
    both = written(tmp_path / "both", flip="both")
    with pytest.raises(SdditError, match=r"SD-R108(.|\n)*mirrored before(.|\n)*both"):
        session_of("dataset.flip=true", f"dataset.path={both}")


def test_it_conforms(tmp_path: Path) -> None:
    for posterior in ("sample", "mean"):
        folder = written(tmp_path / posterior, [(moments(2000)[:, :, :2, :2], labels(2000))])
        check("latents", kind="datasets", path=str(folder), holdout=0.1, posterior=posterior)


def change_index(folder: Path, **changes: Any) -> None:
    index = folder / "latents.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": "mean+var"}, r"unknown layout of latents(.|\n)*did you mean 'mean\+logvar'"),
        ({"channels": 3}, "mean, std and spread for each channel"),
        ({"scale": 0}, "cannot be used: scale"),
        ({"shards": []}, "cannot be used: shards"),
        ({"more": 1}, "cannot be used: more"),
        ({"format": 2}, "cannot be used: format"),
    ],
)
def test_a_wrong_index_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = written(tmp_path / "x")
    change_index(folder, **changes)
    with pytest.raises(SdditError, match=f"SD-D341(.|\n)*{words}"):
        LatentsParams(path=str(folder)).facts()


def test_a_folder_without_an_index_or_with_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(SdditError, match=r"SD-D341(.|\n)*no latents.json(.|\n)*sddit-run encode"):
        LatentsParams(path=str(tmp_path)).facts()
    (tmp_path / "latents.json").write_text("{")
    with pytest.raises(SdditError, match="SD-D341"):
        LatentsParams(path=str(tmp_path)).facts()


def test_a_shard_that_is_not_what_the_index_says_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", [(moments(20), labels(20)), (moments(20), labels(20))])
    shard = folder / "shard-00001.safetensors"
    whole = shard.read_bytes()
    flipped = bytearray(whole)
    flipped[-9] ^= 1
    for data, words in ((bytes(flipped), r"shard-00001.*is not what"), (whole[:-1], r"shard-00001.*another size")):
        shard.write_bytes(data)
        with pytest.raises(SdditError, match=f"SD-D342.*{words}"):
            split(folder)
    shard.write_bytes(whole)
    split(folder)
    shard.unlink()
    shard.symlink_to(folder / "shard-00000.safetensors")
    with pytest.raises(SdditError, match=r"SD-D342.*missing"):
        split(folder)


def reseal(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """Another shard, with its own hash in the index."""
    import hashlib

    path = folder / "shard-00000.safetensors"
    save_file(tensors, path)
    data = path.read_bytes()
    shard = {"file": path.name, "count": ROWS, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change_index(folder, shards=[shard])


def test_tensors_that_do_not_fit_the_index_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "x")
    for tensors, code in (
        ({"moments": moments()[:, :6], "labels": labels()}, "SD-D308"),
        ({"moments": moments()[:39], "labels": labels()}, "SD-D308"),
        ({"moments": moments().astype(np.float64), "labels": labels()}, "SD-D308"),
        ({"moments": moments(), "labels": labels() + 1}, "SD-D307"),
        ({"moments": moments(), "labels": labels()[:39]}, "SD-D307"),
        ({"labels": labels(), "other": moments()}, "SD-D342"),
        ({"labels": labels()}, "SD-D341"),
    ):
        reseal(folder, tensors)
        with pytest.raises(SdditError, match=code):
            split(folder)


def infinite(stored: NDArray[Any]) -> NDArray[Any]:
    stored[:, C:] = np.inf
    return stored


def as_stds(stored: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate(mean_and_std(stored, "mean+logvar"), axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "layout", "words"),
    [
        (infinite, "mean+logvar", "SD-D308: moments hold NaN or infinity"),
        (lambda stored: stored * np.float32("nan"), "mean+logvar", "SD-D308: moments hold NaN"),
        (lambda stored: stored, "mean+std", "SD-D308: a standard deviation is negative"),
        (as_stds, "mean+logvar", "SD-D344: no log-variance is below 0"),
        (lambda stored: stored[:, [0, 4, 1, 5, 2, 6, 3, 7]], "mean+logvar", "SD-D34[45]"),
        (lambda stored: stored * np.float32(1.1), "mean+logvar", "SD-D345: latents.json states another mean"),
    ],
)
def test_shards_that_were_written_otherwise_are_checked_when_read(
    tmp_path: Path, change: Callable[[NDArray[Any]], NDArray[Any]], layout: str, words: str
) -> None:
    folder = written(tmp_path / "x")
    split(folder)
    reseal(folder, {"moments": np.ascontiguousarray(change(moments())), "labels": labels()})
    change_index(folder, layout=layout)
    with pytest.raises(SdditError, match=words):
        split(folder)


def test_implausible_moments_are_read_where_the_index_allows_them(tmp_path: Path) -> None:
    stored = as_stds(moments())
    with pytest.raises(SdditError, match=r"SD-D344(.|\n)*allow_implausible"):
        written(tmp_path / "x", [(stored, labels())])
    folder = written(tmp_path / "x", [(stored, labels())], allow_implausible=True)
    assert len(split(folder)) == ROWS
    facts = LatentsParams(path=str(folder)).facts()
    change_index(folder, allow_implausible=False)
    assert LatentsParams(path=str(folder)).facts().fingerprint == facts.fingerprint
    with pytest.raises(SdditError, match=r"SD-D344(.|\n)*allow_implausible"):
        split(folder)


def test_an_index_of_plausible_moments_is_as_before(tmp_path: Path) -> None:
    assert "allow_implausible" not in (written(tmp_path / "x") / "latents.json").read_text()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"std": [0.0] * C}, "SD-D344"),
        ({"std": [0.8, 0.8, 0.8, 0.0]}, "SD-D344(.|\n)*channel 3"),
        ({"std": [-0.8] * C}, "SD-D341"),
        ({"spread": [100.0] * C}, "SD-D344"),
        ({"class_names": ["a", "b", ""]}, "SD-D316"),
        ({"height": 10**9}, "SD-D341"),
    ],
)
def test_an_index_with_impossible_numbers_is_refused(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    folder = written(tmp_path / "x")
    change_index(folder, **changes)
    with pytest.raises(SdditError, match=code):
        LatentsParams(path=str(folder)).facts()


@pytest.mark.parametrize("key", ["mean", "std", "spread"])
def test_stated_statistics_are_those_of_the_shards(tmp_path: Path, key: str) -> None:
    folder = written(tmp_path / "x")
    stated = json.loads((folder / "latents.json").read_text())[key]
    change_index(folder, **{key: [value + 1e-5 for value in stated]})
    split(folder)
    change_index(folder, **{key: [*stated[:2], stated[2] + 0.1, stated[3]]})
    with pytest.raises(SdditError, match=rf"SD-D345.*another {key}.*channel 2"):
        split(folder)


def test_a_large_cache_is_measured_on_a_sample_and_is_finite_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sddit.data.latents.MAX_MEASURED", 20 * 2 * C * SIDE * SIDE)
    folder = written(tmp_path / "x", [(moments(20), labels(20)), (moments(20, seed=1), labels(20))])
    split(folder)  # every second latent has nearly the same statistics
    stated = json.loads((folder / "latents.json").read_text())["std"]
    change_index(folder, std=[value * 1.2 for value in stated])
    with pytest.raises(SdditError, match=r"SD-D345.*another std"):
        split(folder)
    stored = moments()
    stored[3, C + 1, 2, 2] = np.inf  # not measured
    reseal(folder, {"moments": stored, "labels": labels()})
    with pytest.raises(SdditError, match=r"SD-D308.*NaN or infinity"):
        split(folder)


@pytest.mark.parametrize("count", [10**9, 10**12])
def test_a_count_that_no_shard_holds_is_refused(tmp_path: Path, count: int) -> None:
    folder = written(tmp_path / "x")
    [shard] = json.loads((folder / "latents.json").read_text())["shards"]
    change_index(folder, shards=[shard | {"count": count}])
    with pytest.raises(SdditError, match="SD-D341"):
        LatentsParams(path=str(folder)).facts()


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"])
def test_labels_of_any_whole_type_are_read(tmp_path: Path, kind: str) -> None:
    folder = written(tmp_path / "x", [(moments(), labels().astype(kind))])
    reseal(folder, {"moments": moments(), "labels": labels().astype(kind)})
    assert split(folder).fetch(range(ROWS))[1].tolist() == labels().tolist()
    high = labels().astype(kind)
    high[0] = np.iinfo(kind).max
    reseal(folder, {"moments": moments(), "labels": high})
    with pytest.raises(SdditError, match="SD-D307"):
        split(folder)


def test_an_index_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "latents.json")
    with pytest.raises(SdditError, match=r"SD-D341(.|\n)*Not a regular file"):
        LatentsParams(path=str(tmp_path)).facts()


def test_names_of_classes_are_checked(tmp_path: Path) -> None:
    for names in (("ant", "bee", " "), ("ant", "bee", "c\now"), "abc", ("ant", "bee", 3)):
        with pytest.raises(SdditError, match="SD-D316"):
            written(tmp_path / "x", class_names=names)
    with pytest.warns(UserWarning, match="no latent has the classes #3 'dog'"):
        written(tmp_path / "x", class_names=(*NAMES, "dog"))


@pytest.mark.parametrize(
    ("parts", "more", "code", "words"),
    [
        ([(moments()[:, :7], labels())], {}, "SD-D308", "cannot be moments"),
        ([(moments(dtype=np.float64), labels())], {}, "SD-D308", "float64"),
        ([(moments() * np.float32("nan"), labels())], {}, "SD-D308", "NaN or infinity"),
        ([(moments(), labels())], {"layout": "mean+std"}, "SD-D308", r"negative(.|\n)*mean\+logvar"),
        ([(moments(), labels())], {"layout": "mean"}, "SD-D341", "unknown layout"),
        ([(moments(), labels() + 1)], {}, "SD-D307", "1 to 3"),
        ([(moments(), labels().astype(float))], {}, "SD-D307", "whole numbers"),
        ([(moments(), labels())], {"class_names": ()}, "SD-D307", "0 to 0"),
        ([(moments(), labels()[:9])], {}, "SD-D308", "do not fit together"),
        ([(moments(), labels()), (moments()[:, :6], labels())], {}, "SD-D308", "shard 1"),
        ([], {}, "SD-D308", "no latents"),
        ([(moments(), labels())], {"scale": 1.0}, "SD-D344", r"applied twice(.|\n)*pass allow_implausible=True"),
        ([(moments(), labels())], {"scale": SCALE**2}, "SD-D344", r"scale = 0\.\d+, for a standard deviation of 1"),
    ],
)
def test_what_cannot_be_a_cache_is_not_written(
    tmp_path: Path, parts: Any, more: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(SdditError, match=f"{code}(.|\n)*{words}"):
        written(tmp_path / "x", parts, **more)
    assert not (tmp_path / "x/latents.json").exists()


def test_a_finished_cache_is_not_overwritten_and_an_unfinished_one_is(tmp_path: Path) -> None:
    folder = written(tmp_path / "x")
    with pytest.raises(SdditError, match="SD-D343"):
        written(folder)
    (folder / "latents.json").unlink()
    assert len(split(written(folder))) == ROWS


def test_arrays_and_the_folders_of_edm2_are_packed(tmp_path: Path, sddit_run: Any) -> None:
    stored = moments()
    np.savez(tmp_path / "part.npz", moments=stored, labels=labels())
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    edm2 = tmp_path / "edm2"
    (edm2 / "00000").mkdir(parents=True)
    stds = np.concatenate([stored[:, :C], np.exp(stored[:, C:] / 2)], axis=1)
    files = [f"00000/img-mean-std-{number:08d}.npy" for number in range(ROWS)]
    for name, one in zip(files, stds, strict=True):
        np.save(edm2 / name, one)
    listed = [[name, int(label)] for name, label in zip(files, labels(), strict=True)]
    (edm2 / "dataset.json").write_text(json.dumps({"labels": listed}))
    common = ["--scale", str(SCALE), "--encoder", "sd-vae", "--classes", tmp_path / "names.txt"]
    for out, source, layout in (("a", "part.npz", "mean+logvar"), ("b", "edm2", "mean+std")):
        assert sddit_run("pack", tmp_path / source, tmp_path / out, "--layout", layout, *common).status == 0
    one, other = split(tmp_path / "a"), split(tmp_path / "b")
    assert torch.equal(one.fetch(range(ROWS))[0], other.fetch(range(ROWS))[0])
    torch.testing.assert_close(one.spread(range(ROWS)), other.spread(range(ROWS)), rtol=1e-5, atol=1e-7)
