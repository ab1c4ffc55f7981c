"""One run, from a recipe to a report: train, sample, score, write. Running it again continues where it stopped.

What is done is read from the folder, never remembered elsewhere: a checkpoint of the last step means trained,
`report.html` means finished. Each file is put in place whole, so a kill at any moment loses at most the steps since the
last save.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from sddit.api import load_run
from sddit.data.declared import no_images
from sddit.distributed import processes
from sddit.distributed.rendezvous import join_processes, refuse_differences
from sddit.distributed.signals import Stopped, StopSignals
from sddit.distributed.world import World
from sddit.errors import error, memory_errors, raise_all
from sddit.evaluation import pictures
from sddit.evaluation.probing import probe
from sddit.evaluation.scores import Scores
from sddit.evaluation.scoring import SAMPLES, begin_sampling, draw, draw_of, read_scores, score_images, scorer_of
from sddit.interfaces import Dataset
from sddit.progress import Progress
from sddit.recipes.checks import check_processes
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.reports.run.probe import write_probe
from sddit.runs.callbacks import Watcher, stop_if_asked
from sddit.runs.report_data import cost_of, write_run_report
from sddit.runs.setup import begin, prepare
from sddit.storage.checkpoints import Store
from sddit.storage.run_folder import COST, RECIPE, REPORT, SCORES, RunFolder, recipe_path
from sddit.training.environment import choose_device, packages
from sddit.training.loop import train
from sddit.training.nonfinite import NonFinite
from sddit.training.session import Session


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run stands when its command ends."""

    folder: Path
    report: Path
    scores: dict[str, Scores]
    already_finished: bool


def run(
    recipe: Recipe,
    *,
    out: Path,
    device: str,
    progress: Progress,
    fresh: bool = False,
    allow: Sequence[str] = (),
    resume: Path | None = None,
) -> RunResult:
    """Train, sample, score and report, as far as it is not done yet.

    Args:
        recipe: what to run.
        out: the folder of run folders; the run's own is `<recipe>-<id>` in it.
        device: `cpu` or `cuda`.
        progress: where to show how it goes; a silent one on all but the main rank.
        fresh: set what the folder holds aside and begin anew.
        allow: keys that may differ from the recipe of the folder given by `resume`.
        resume: continue this run folder instead.

    Raises:
        SdditError: a problem for the person who typed.
        SystemExit: a signal asked to stop; everything is saved, and the status is the documented one.
    """
    chosen = choose_device(device)
    if not recipe.dataset.params.holds_images:
        raise no_images()
    if resume is not None and not (resume / RECIPE).is_file():
        raise error(
            "SD-C445", "not a run folder", where="--resume", got=str(resume), expect=f"a folder that holds {RECIPE}"
        )
    raise_all(check_processes(recipe, processes.world_size()))
    place = resume or out / f"{recipe.name}-{recipe.run_id}"
    with join_processes(chosen, recipe.train.timeout) as world, held(place, world) as folder, world.stop as stop:
        refuse_differences(world, {"recipe, data and plugins": recipe.run_id, "packages": packages()})
        finished = world.from_main(
            lambda: begin(recipe, folder, chosen, progress, fresh=fresh, allow=allow, resumed=resume is not None)
        )
        progress.folder = folder.path  # from here on a crash log has its place in it
        if finished:
            return RunResult(folder.path, folder.path / REPORT, read_scores(folder.path), already_finished=True)
        store = Store(folder.path / "checkpoints", keep=recipe.train.keep)
        with ending(stop, progress, "before the first step"):
            session, cursor = prepare(recipe, folder, store, chosen, progress, world)
        progress.step = session.step
        with Watcher(session, folder, store, cursor, stop, progress) as watcher:
            with ending(stop, progress, "before the first step"):
                watcher.catch_up(session)
            progress.stage("training", total=recipe.train.steps, done=session.step)
            try:
                with training_memory(recipe):
                    train(session, watcher)
            except NonFinite as fault:
                raise watcher.kept(session, fault) from fault
            stop.alone = True  # there is no further step after which all could stop
            with ending(stop, progress, "after the last step"):
                scores = finish(session, watcher)
        return RunResult(folder.path, folder.path / REPORT, scores, already_finished=False)


@contextmanager
def held(place: Path, world: World) -> Iterator[RunFolder]:
    """The run folder, which the main rank holds for all and alone writes to."""
    with RunFolder(place) if world.main else nullcontext(RunFolder(place)) as folder:
        folder.path = Path(world.from_main(lambda: str(folder.path)))
        yield folder


@contextmanager
def ending(stop: StopSignals, progress: Progress, when: str) -> Iterator[None]:
    """Where nothing has to be saved: a signal ends the process at once, with the documented status."""
    try:
        with stop.at_once():
            yield
    except Stopped:
        stop_if_asked(stop, progress, when)


def training_memory(recipe: Recipe) -> AbstractContextManager[None]:
    """Around training: memory that runs out is told with what would take less of it."""
    batch = recipe.train.micro_batch or recipe.train.batch
    less = [] if batch == 1 else [f"train.micro_batch = {max(n for n in range(1, batch // 2 + 1) if batch % n == 0)}"]
    if not recipe.train.activation_checkpointing:
        less.append("train.activation_checkpointing = true")
    return memory_errors(
        "train", got=f"{batch} images at once", fix=" or ".join(less) or "a smaller network or a larger device"
    )


def finish(session: Session, watcher: Watcher) -> dict[str, Scores]:
    """The pictures, the scores, the probe, the report."""
    folder, progress = watcher.folder, watcher.progress
    scores = score(session, watcher)
    weights = session.weights(session.recipe.sampled_weights)  # of which each rank may hold a part
    if not session.world.main:
        return {}
    watcher.scored(session, scores)
    folder.write_json(SCORES, {label: one.to_json() for label, one in scores.items()})
    if session.recipe.evaluate.probe:
        write_probe(folder, probe(weights, session.schedule, session.recipe, progress))
    folder.write_json(COST, asdict(cost_of(session.recipe, folder.path)))
    progress.stage("report")
    folder.write_text(REPORT, write_run_report(session.recipe, folder.path, scores))
    progress.end_stage()
    return scores


def score(session: Session, watcher: Watcher) -> dict[str, Scores]:
    """Sample as many images as the recipe says, keep them, and compare them with real ones."""
    progress = watcher.progress
    begin_sampling(session.recipe, progress, session.world)
    request, images = draw_of(session, session.recipe.evaluate.samples, lambda step, x: progress.tick())
    if not session.world.main:
        return {}
    pictures.write_samples(watcher.folder, SAMPLES, images, request)
    if watcher.scorer is not None:
        progress.stage("scoring")
    return score_images(watcher.scorer, request, images)


def evaluate_run(folder: Path, *, device: str, progress: Progress) -> dict[str, Scores]:
    """Sample and score a run at its newest good checkpoint, finished or not. Changes nothing in its folder."""
    chosen = choose_device(device)
    resolve(recipe_path(folder))  # which needs the data, and says what is wrong with it
    model = load_run(folder)
    recipe = model.require_recipe()
    if not recipe.dataset.params.holds_images:
        raise no_images()
    train_set: Dataset = recipe.dataset.build(split="train")
    schedule = model.require_schedule()
    with join_processes(chosen, recipe.train.timeout) as world:
        begin_sampling(recipe, progress, world)
        request, images = draw(
            model.backbone.to(chosen),
            schedule,
            recipe,
            train_set,
            chosen,
            world,
            recipe.evaluate.samples,
            lambda step, x: progress.tick(),
        )
        scorer = scorer_of(recipe, train_set, chosen) if world.main else None
        if scorer is not None:
            progress.stage("scoring")
        return score_images(scorer, request, images)
