"""Test `sddit-run reference`, and the comparison of its files with samples, with an extractor of a one-file plugin."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sddit.data.archives import load_arrays
from sddit.storage.run_folder import RECIPE

PLUGIN = """
import numpy as np
from sddit import hookimpl
from sddit.interfaces import EvaluateMode, FeatureParams, ModeOption

def statistics(images, *, device, network):
    network.read_bytes()
    parts = [part.numpy() for part in images]
    return {"mean": np.concatenate(parts).mean((0, 2, 3))}

def compare(samples, *, device, progress, network, real):
    ours = np.concatenate(list(samples.batches(5))).mean((0, 1, 2))
    return {"distance": float(np.abs(ours - np.load(real)["mean"]).max())}

class ColoursParams(FeatureParams):
    @classmethod
    def evaluate_modes(cls):
        options = ModeOption("network", "FILE", "A network."), ModeOption("real", "NPZ", "Real images.")
        return (
            EvaluateMode(
                "colours", options, __name__ + ":compare", "colours", {"distance": "distance"},
                reference="real", statistics=__name__ + ":statistics",
            ),
        )

@hookimpl
def register_features(registry):
    registry.add("colours", "nowhere:Colours", params=ColoursParams, summary="Mean colours.")
"""
OPTIONS = ("--plugin", "./colours.py", "--network", "network.bin")


@pytest.fixture
def plugin(tmp_path: Path) -> None:
    (tmp_path / "colours.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "network.bin").write_bytes(b"weights")


@pytest.fixture
def run(sddit_run: Any, toy_recipe: Path, plugin: None) -> Path:
    """Return the folder of a finished run of toys."""
    done = sddit_run(toy_recipe, "--json")
    assert done.status == 0, done.stderr
    return Path(json.loads(done.stdout)["folder"])


def altered(reference: Path, **changes: Any) -> Path:
    """Write a copy of a reference whose record has other values."""
    with np.load(reference) as arrays:
        kept = dict(arrays)
    kept["sddit"] = np.array(json.dumps(json.loads(str(kept["sddit"])) | changes))
    np.savez(reference.with_name("altered.npz"), **kept)
    return reference.with_name("altered.npz")


def state_crop(run: Path, crop: str) -> None:
    """Write the crop of the training images into the resolved recipe of a run."""
    stated = json.loads((run / RECIPE).read_text(encoding="utf-8"))
    stated["data"]["crop"] = crop
    (run / RECIPE).write_text(json.dumps(stated), encoding="utf-8")


def test_a_run_and_its_recipe_give_the_statistics_of_its_training_images(
    sddit_run: Any, run: Path, toy_recipe: Path
) -> None:
    for source in (run, toy_recipe):
        made = sddit_run("reference", source, "new/real.npz", *OPTIONS, "--json")
        assert made.status == 0, made.stderr
        record = json.loads(made.stdout)
        data = json.loads((run / RECIPE).read_text(encoding="utf-8"))["data"]
        assert record["images"] == data["train_size"]
        assert [record["height"], record["width"]] == data["image"][1:]
        assert (record["fingerprint"], record["split"]) == (data["fingerprint"], "train")
        assert record["files"] == {"network": sha256(b"weights").hexdigest()}
    again = sddit_run("reference", run, "new/real.npz", *OPTIONS)  # an earlier reference is replaced
    assert again.stdout.splitlines()[-1].startswith(f"new/real.npz: {record['images']} images of")
    assert load_arrays(Path("new/real.npz"), ["mean"])["mean"].shape == (3,)
    assert [path.name for path in Path("new").iterdir()] == ["real.npz"]


def test_samples_are_compared_with_a_reference_of_their_kind_only(sddit_run: Any, run: Path) -> None:
    real = Path("real.npz")
    assert sddit_run("reference", run, real, *OPTIONS).status == 0

    def evaluate(reference: Path) -> Any:
        return sddit_run("evaluate", run, *OPTIONS, "--real", reference, "--json")

    fits = evaluate(real)
    assert fits.status == 0, fits.stderr
    assert json.loads(fits.stdout)["colours"]["not_compared"] == []  # the data are the same, so the crop is
    assert "not compared" not in fits.stderr
    for changes, says in {
        ("height", 9): "images of another size",
        ("files", "other"): "another file of network",
    }.items():
        key, value = changes
        other = evaluate(altered(real, **{key: {"network": value} if key == "files" else value}))
        assert other.status == 2
        assert "SD-T942" in other.stderr
        assert says in other.stderr
    other_data = evaluate(altered(real, fingerprint="0"))
    assert other_data.status == 0
    assert "not compared, since altered.npz or the run does not state it: crop" in other_data.stderr
    state_crop(run, "adm")
    assert evaluate(altered(real, crop="adm", fingerprint="0")).status == 0
    cut = evaluate(altered(real, crop="none"))
    assert (cut.status, "another crop of images" in cut.stderr) == (2, True)


def test_a_reference_without_a_record_is_used_with_a_warning(sddit_run: Any, run: Path) -> None:
    np.savez("plain.npz", mean=np.zeros(3))
    done = sddit_run("evaluate", run, *OPTIONS, "--real", "plain.npz", "--json")
    assert done.status == 0, done.stderr
    assert "plain.npz or the run does not state it: size, crop, network" in done.stderr
    assert json.loads((run / "colours.json").read_text())["not_compared"] == ["size", "crop", "network"]
    np.savez("images.npz", mean=np.zeros(3), arr_0=np.zeros((2, 31, 31, 3), dtype=np.uint8))
    other = sddit_run("evaluate", run, *OPTIONS, "--real", "images.npz")
    assert (other.status, "31x31 pixels" in other.stderr) == (2, True)


def test_a_damaged_record_is_refused(sddit_run: Any, run: Path) -> None:
    np.savez("real.npz", mean=np.zeros(3), sddit=np.array('{"format": 1}'))
    done = sddit_run("evaluate", run, *OPTIONS, "--real", "real.npz")
    assert (done.status, "SD-T941" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("nowhere", "real.npz", "--size", "8"), "SD-T943"),
        (("colours.py", "real.npz", "--size", "8"), "SD-T943"),
        (("RUN", "real.npz", "--size", "8"), "SD-T943"),
        (("RUN", "real.npz", "dataset.size=8"), "SD-T943"),
        (("nowhere", "real.npz", "train.steps=8"), "SD-T943"),
        (("RUN", "network.bin"), "SD-F716"),
        (("RUN", "."), "SD-F716"),
        (("RUN", "link.npz"), "SD-F716"),
        (("RUN", "network.bin/real.npz"), "SD-F705"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_image_is_read(
    words: tuple[str, ...], code: str, sddit_run: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sddit.evaluation.reference.RealImages.__iter__", lambda _: pytest.fail("an image was read"))
    Path("link.npz").symlink_to("elsewhere.npz")
    done = sddit_run("reference", *(str(run) if word == "RUN" else word for word in words), *OPTIONS)
    assert code in done.stderr, done.stderr
    assert Path("network.bin").read_bytes() == b"weights"
    assert not Path("real.npz").exists()


def test_an_extractor_must_be_chosen(sddit_run: Any, run: Path) -> None:
    alone = sddit_run("reference", run, "real.npz", "--plugin", "./colours.py")
    assert (alone.status, "--network is missing" in alone.stderr) == (2, True)
    assert "--real" not in sddit_run("reference", "--plugin", "./colours.py", "--help").stdout


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_reference_leaves_the_earlier_one(
    stop: BaseException, sddit_run: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sddit_run("reference", run, "out/real.npz", *OPTIONS).status == 0
    before = Path("out/real.npz").read_bytes()

    def interrupted(*_: object) -> None:
        raise stop

    monkeypatch.setattr("sddit.evaluation.reference.write_arrays", interrupted)
    assert sddit_run("reference", run, "out/real.npz", *OPTIONS).status != 0
    assert Path("out/real.npz").read_bytes() == before
    assert [path.name for path in Path("out").iterdir()] == ["real.npz"]
