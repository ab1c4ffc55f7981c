"""Usual mistakes of authors of data sets: the kit and a run, before its first step, name the cause and fix of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from sddit.cli.app import call
from sddit.plugins.host import using_host
from sddit.testing import TOY_RECIPE, toy_host

SOURCE = """
import hashlib
import random
import torch
from pydantic import Field
from sddit import hookimpl
from sddit.interfaces import DataFacts, DatasetParams


class MineParams(DatasetParams):
    seed: int = Field(0, ge=0, le=100, description="A seed.")

    def facts(self):
        return DataFacts(
            image=(1, 8, 8),
            class_names=("a", "b"),
            train_size=600,
            test_size=16,
            fingerprint=hashlib.sha256(f"mine-{self.seed}".encode()).hexdigest(),
            mean=(0.0,),
            std=(0.577,),
            source="made",
        )


class Mine:
    def __init__(self, params, *, split):
        self.facts = params.facts()
        self.size = self.facts.train_size if split == "train" else self.facts.test_size
        self.generator = torch.Generator().manual_seed(2 * params.seed + (split == "test"))
        self.images = 2 * torch.rand(self.size, 1, 8, 8, generator=self.generator) - 1
        self.classes = torch.arange(self.size) % 2

    def __len__(self):
        return self.size

    def fetch(self, ids):
        ids = torch.as_tensor(ids)
        images, labels = self.images[ids], self.classes[ids]
        return images, labels

    def to_images(self, x):
        return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)


@hookimpl
def register_datasets(registry):
    registry.add("mine", Mine, params=MineParams, summary="Mine.")
"""

Changes = list[tuple[str, str]]


def fetches(text: str) -> Changes:
    return [("        return images, labels", f"        return {text}")]


def states(field: str, text: str) -> Changes:
    [line] = [line for line in SOURCE.splitlines() if line.startswith(f"            {field}=")]
    return [(line, f"            {field}={text}," if text else "")]


def holds(text: str) -> Changes:
    return [("        self.classes = ", f"        {text}\n        self.classes = ")]


MISTAKES: list[tuple[str, Changes, str, str]] = [
    ("no fingerprint", states("fingerprint", '""'), "it has no fingerprint", "hashlib.sha256"),
    ("a fingerprint of bytes", [(".hexdigest()", ".digest()")], "fingerprint as bytes", "hexdigest()"),
    ("another fingerprint at each call", [("self.seed}", "random.random()}")], "differ from call to call", "the time"),
    ("a mean for each of three channels", states("mean", "(0.0, 0.0, 0.0)"), "mean is not one number", "per channel"),
    ("a mean of one number", states("mean", "0.0"), "mean as float", "mean=(0.1,)"),
    ("a mean that is NaN", states("mean", "(float('nan'),)"), "the mean is not finite", "mean=(0.1,)"),
    ("no spread", states("std", "(0.0,)"), "is not above 0", "above 0"),
    ("another standard deviation", states("std", "(0.5,)"), "mean and std are not those", "state these in facts()"),
    ("class names in a text", states("class_names", '"ab"'), "class_names as str", '("cat", "dog")'),
    ("a number of classes", states("class_names", "2"), "class_names as int", '("cat", "dog")'),
    ("a shape without channels", states("image", "(8, 8)"), "image as tuple", "image=(C, H, W)"),
    ("a size of a fraction", states("train_size", "600.0"), "train_size as float", "number of images"),
    ("a negative size", states("test_size", "-1"), "test_size is negative", "0 if there are none"),
    ("a fact missing", states("source", ""), "argument: 'source'", "DataFacts takes image, class_names"),
    ("a misspelt fact", [("train_size=600", "train_sizes=600")], "'train_sizes'", "DataFacts takes image"),
    ("no return", [("return DataFacts", "DataFacts")], "facts() does not return DataFacts", "return DataFacts(image="),
    ("no facts", [("def facts", "def state")], "NotImplementedError", "define facts in its params"),
    ("a larger split", [("self.size = self.facts.train_size if", "self.size = 601 if")], "length", "train_size=601"),
    ("a smaller split", [("self.size = self.facts.train_size if", "self.size = 599 if")], "length", "train_size=599"),
    ("a misspelt split", [('if split == "train"', 'if split == "training"')], "length", "for split='train'"),
    (
        "no split",
        [("params, *, split", "params"), ('split == "train"', "1"), ('split == "test"', "0")],
        "split",
        "*, s",
    ),
    ("one split", [(' + (split == "test")', "")], "the test split holds images of the training", "held-out images"),
    ("no attribute facts", [("self.facts", "self.stated")], "no attribute facts", "self.facts = params.facts()"),
    ("no method fetch", [("def fetch", "def __getitem__")], "no method fetch", "def fetch(self, ids)"),
    ("no length", [("def __len__", "def length")], "no method __len__", "def __len__(self)"),
    ("no images to view", [("def to_images", "def pixels")], "no method to_images", "def to_images(self, x)"),
    ("labels as an attribute", [("self.classes", "self.labels")], "labels is Tensor, not a method", "self._labels"),
    ("uint8 images", fetches("((images + 1) * 127.5).to(torch.uint8), labels"), "not float32", "/ 127.5 - 1"),
    ("float64 images", fetches("images.double(), labels"), "not float32", "images.float()"),
    ("pixels to 255", fetches("(images + 1) * 127.5, labels"), "mean and std are not those", "/ 127.5 - 1"),
    ("pixels from 0", fetches("(images + 1) / 2, labels"), "mean and std are not those", "2 * images - 1"),
    ("an array", fetches("images.numpy(), labels"), "got:    ndarray", "torch.as_tensor(images)"),
    ("channels last", fetches("images.permute(0, 2, 3, 1), labels"), "wrong shape", "images.permute(0, 3, 1, 2)"),
    ("no channels", fetches("images[:, 0], labels"), "wrong shape", "images[:, None]"),
    ("three channels", fetches("images.repeat(1, 3, 1, 1), labels"), "wrong shape", "state image=(3, 8, 8)"),
    ("too few images", fetches("images[:2], labels[:2]"), "wrong shape", "one image for each of the ids"),
    ("images that require a gradient", holds("self.images.requires_grad_()"), "require a gradient", "images.detach()"),
    ("NaN", fetches("images / 0 * 0, labels"), "is not finite", "leave the images out"),
    ("one NaN", holds("self.images[299] = float('nan')"), "in image 299", "leave the images out"),
    ("images alone", fetches("images"), "does not return images and labels", "return images, labels"),
    ("nothing", fetches("None"), "does not return images and labels", "return images, labels"),
    ("int32 labels", fetches("images, labels.int()"), "labels are not int64", "labels.long()"),
    ("a list of labels", fetches("images, labels.tolist()"), "got:    list", "torch.as_tensor(labels)"),
    ("one-hot labels", fetches("images, torch.eye(2)[labels]"), "labels has a wrong shape", "labels.argmax(dim=1)"),
    ("labels from 1", fetches("images, labels + 1"), "not class numbers", "labels - 1"),
    ("more labels than classes", [(" % 2", " % 5")], "not class numbers", "has 2 names: state all classes"),
    (
        "other labels than those of the images",
        [("    def to_images", "    def labels(self):\n        return 1 - self.classes\n\n    def to_images")],
        "labels() differ from those that fetch returns",
        "in the order of the ids",
    ),
    ("pixels of both signs to 255", fetches("images * 255, labels"), "mean and std are not those", "is_latent=True"),
    ("random images", fetches("images + torch.randn(()), labels"), "torch's global generator", "dataset.flip"),
    ("a random flip", fetches("images.flip(-1) if random.random() < 0.5 else images, labels"), "Python's", "dataset.f"),
    (
        "images of its own generator",
        fetches("images + torch.randn(1, generator=self.generator), labels"),
        "fetch gives other images for the same ids",
        "without random changes",
    ),
    ("images changed", fetches("self.images.mul_(0.99)[ids], labels"), "other images for the same ids", "resumes"),
    (
        "images by their place",
        fetches("images + torch.arange(len(images))[:, None, None, None], labels"),
        "depends on the order",
        "of its id alone",
    ),
    ("random when it is built", [("generator=self.generator", "generator=None")], "building the train", "manual_seed"),
    ("never the same", [(".manual_seed(2", ".manual_seed(id(self) + 2")], "when it is built again", "manual_seed"),
    ("grey images to view", [(".expand(-1, 3, -1, -1)", "")], "to_images returns has a wrong shape", "expand(-1, 3"),
    ("float images to view", [(".round().to(torch.uint8)", "")], "does not give uint8", "round().to(torch.uint8)"),
    ("a view that changes its input", [("x.clamp(", "x.clamp_(")], "changed what it was given: x", "work on a copy"),
    ("a misspelt attribute", [("self.images[ids]", "self.imges[ids]")], "'imges'", "did you mean .images?"),
    ("ids from 1", [("torch.as_tensor(ids)", "torch.as_tensor(ids) + 1")], "out of bounds", "correct the line above"),
]


def said(command: list[str], changes: Changes, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    text = SOURCE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    Path("mine.py").write_text(text, encoding="utf-8")
    Path("toy.toml").write_text(f'plugins = ["./mine.py"]\n{TOY_RECIPE}\n[evaluate]\npreviews = 0\nsamples = 8\n')
    with using_host(toy_host()):
        status = call(command)
    both = capsys.readouterr()
    return status, both.out + both.err


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


COMMANDS = [["check", "mine.py"], ["toy.toml", "dataset.name=mine/mine"]]


@pytest.mark.parametrize("command", COMMANDS, ids=["kit", "run"])
@pytest.mark.parametrize(("changes", "cause", "fix"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_named_with_its_fix(
    command: list[str], changes: Changes, cause: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = said(command, changes, capsys)
    assert status == 3 and "bug in the toolkit" not in text and "Traceback" not in text, text
    assert cause in text and fix in text, text
    assert text.count("error SD-P") <= 2, text  # not what follows of it


@pytest.mark.parametrize("command", COMMANDS, ids=["kit", "run"])
@pytest.mark.parametrize("changes", [[], states("test_size", "0")], ids=["as it is", "no test split"])
def test_a_data_set_without_a_mistake_passes(
    command: list[str], changes: Changes, capsys: pytest.CaptureFixture[str]
) -> None:
    """The negative control."""
    status, text = said(command, changes, capsys)
    assert status == 0, text


def test_a_run_checks_the_settings_of_its_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """The kit sees the defaults alone: with these, the images are right."""
    changes = fetches("images * (1 if self.generator.initial_seed() < 2 else 9), labels")
    assert said(COMMANDS[0], changes, capsys)[0] == 0
    status, text = said([*COMMANDS[1], "dataset.seed=7"], changes, capsys)
    assert status == 3 and "mean and std are not those" in text, text
