"""Balanced batches: in a run, over ranks, after a resume; and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sddit.distributed.world import World
from sddit.errors import SdditError
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.storage.checkpoints import Store
from sddit.testing.sessions import state_of
from sddit.testing.toys.components import ToyDataset
from sddit.testing.toys.plugin import TOY_PAIR_RECIPE, toy_host
from sddit.training.build import build_session
from sddit.training.inputs import micro_batches, step_samples
from sddit.training.loop import train
from sddit.training.session import Session
from sddit.training.state import checkpoint_files, restore

CPU = torch.device("cpu")
UNEQUAL = ("dataset.images=10", "dataset.classes=4")  # 3, 3, 2 and 2 images


class Quiet:
    """Callbacks that stop after a number of steps."""

    def __init__(self, until: int) -> None:
        self.until = until

    def logged(self, session: Session, row: object) -> None: ...

    def stepped(self, session: Session) -> None:
        if session.step == self.until:
            raise StopIteration


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    path = tmp_path / "toy.toml"
    path.write_text(TOY_PAIR_RECIPE)
    host = toy_host()
    return lambda *overrides: resolve(path, overrides, host=host)


def classes_of(session: Session) -> list[int]:
    """Return how often a step shows each class."""
    counts = Counter(session.dataset.fetch(step_samples(session)[0])[1].tolist())
    return [counts[label] for label in range(4)]


def test_a_balanced_batch_has_as_many_images_of_each_class(recipe_of: Callable[..., Recipe]) -> None:
    balanced, plain = (
        build_session(recipe_of(*UNEQUAL, f"dataset.balanced={word}"), CPU) for word in ("true", "false")
    )
    shown = []
    for step in range(4):
        balanced.step = plain.step = step
        assert classes_of(balanced) == [2, 2, 2, 2]
        shown.append(classes_of(plain))
    assert shown != [[2, 2, 2, 2]] * 4


def test_the_ranks_share_a_balanced_batch(recipe_of: Callable[..., Recipe]) -> None:
    session = build_session(recipe_of(*UNEQUAL, "dataset.balanced=true", "train.micro_batch=4"), CPU)
    whole = step_samples(session)
    parts = []
    for rank in range(2):
        session.world = World()
        session.world.rank, session.world.size = rank, 2
        parts.append([(micro.ids, micro.epochs) for micro in micro_batches(session)])
    assert step_samples(session) == whole
    both = [ids + other for (ids, _), (other, _) in zip(*parts, strict=True)]
    assert [image for ids in both for image in ids] == whole[0]
    assert parts[0] != parts[1]


def test_a_balanced_run_is_the_same_after_a_resume(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of(*UNEQUAL, "dataset.balanced=true")

    def trained(session: Session, until: int) -> Session:
        with pytest.raises(StopIteration):
            train(session, Quiet(until))
        return session

    through = trained(build_session(recipe, CPU), 4)
    stopped = trained(build_session(recipe, CPU), 2)
    resumed = build_session(recipe, CPU)
    store = Store(tmp_path / "checkpoints", keep=1)
    store.save(2, checkpoint_files(stopped, {}))
    found = store.latest()
    assert found is not None
    restore(resumed, found)
    ends = [
        state_of(session) for session in (through, trained(resumed, 4), trained(build_session(recipe_of(), CPU), 4))
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


def test_the_key_changes_the_run_id_only_where_it_is_set(recipe_of: Callable[..., Recipe]) -> None:
    assert recipe_of().run_id == recipe_of("dataset.balanced=false").run_id
    assert recipe_of().run_id != recipe_of("dataset.balanced=true").run_id


def test_a_data_set_that_does_not_state_its_labels_is_refused(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unlisted(ToyDataset):
        labels = None

    recipe = recipe_of("dataset.balanced=true")
    monkeypatch.setattr("sddit.testing.toys.components.ToyDataset", Unlisted)
    with pytest.raises(SdditError) as refused:
        build_session(recipe, CPU)
    assert refused.value.problems[0].code == "SD-D318"
    monkeypatch.undo()
    assert build_session(recipe, CPU).members is not None


@pytest.mark.parametrize("classes", [0, 1])
def test_there_must_be_classes_to_balance(recipe_of: Callable[..., Recipe], classes: int) -> None:
    keys = [f"dataset.classes={classes}", "dataset.label_drop=0.0"]
    with pytest.raises(SdditError, match="no classes to balance"):
        recipe_of(*keys, "dataset.balanced=true")
    recipe_of(*keys)
