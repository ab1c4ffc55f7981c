"""Run a recipe from training to report. The same call resumes an interrupted run.

Progress is read from the run folder alone: a checkpoint of the last step means trained, `report.html` means finished.
Files are replaced atomically, so a kill at any moment loses at most the steps since the last save.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sddit.api import load_run_with_data
from sddit.data.declared import no_images
from sddit.data.undecoded import refuse_latents
from sddit.distributed import processes
from sddit.distributed.rendezvous import join_processes, refuse_differences
from sddit.distributed.signals import Stopped, StopSignals
from sddit.distributed.world import World
from sddit.errors import error, memory_errors, raise_all
from sddit.evaluation import sample_images
from sddit.evaluation.probing import probe
from sddit.evaluation.scores import Scores
from sddit.evaluation.scoring import SCORE_AGAIN, names_of_non_finite, read_scores, score_kept, score_parts, scorer_of
from sddit.generation import IMAGES, generate_parts, image_converter, scoring_request
from sddit.interfaces import Dataset
from sddit.plugins.host import host, registry, third_party
from sddit.progress import Progress
from sddit.recipes.checks import check_processes
from sddit.recipes.checks.evaluation_rules import why_no_scores
from sddit.recipes.recipe import Recipe
from sddit.reports.run.probe_charts import write_probe
from sddit.runs.callbacks import RunCallbacks, stop_if_asked
from sddit.runs.report_data import cost_of, write_run_report
from sddit.runs.setup import prepare_folder, prepare_session
from sddit.storage.checkpoints import Store
from sddit.storage.run_folder import COST, RECIPE, REPORT, SCORES, RunFolder, recorded_ids
from sddit.storage.run_result import write_result
from sddit.training.environment import choose_device, packages
from sddit.training.first_step import check_data, check_losses, loss_errors
from sddit.training.loop import train
from sddit.training.nonfinite import NonFinite
from sddit.training.second_network import load_second_network
from sddit.training.session import Session


@dataclass(frozen=True, slots=True)
class RunResult:
    folder: Path
    report: Path
    scores: dict[str, Scores]
    already_finished: bool
    no_scores: str = ""  # why there are no scores


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
    """Train, sample, score and report. Finished parts are not repeated.

    Args:
        recipe: what to run.
        out: the folder of run folders; the run's own is `<recipe>-<id>` in it.
        device: `cpu` or `cuda`.
        progress: the display; a silent one on every rank but the main one.
        fresh: move the contents of the folder aside and start over.
        allow: keys that may differ from the recipe of the folder `resume`.
        resume: run folder to continue instead.

    Raises:
        SdditError: an error that the user can fix.
        SystemExit: a signal arrived; everything is saved, and the status is the documented one.
    """
    chosen = choose_device(device)
    refuse_unusable(recipe, resume)
    recipe = replace(recipe, processes=processes.world_size())
    path = resume or out / f"{recipe.name}-{recipe.run_id}"
    with (
        join_processes(chosen, recipe.train.timeout) as world,
        locked_run_folder(path, world) as folder,
        world.stop as stop,
    ):
        refuse_differences(world, {"recipe, data and plugins": recipe.run_id, "packages": packages()})
        finished = world.from_main(
            lambda: prepare_folder(
                recipe, folder, chosen, progress, fresh=fresh, allow=allow, resumed=resume is not None
            )
        )
        progress.folder = folder.path  # crash logs go there from now on
        if finished:
            scores = read_scores(folder.path)
            if names := names_of_non_finite(scores):
                progress.warn(f"{folder.path / SCORES} has non-finite scores: {', '.join(names)}; {SCORE_AGAIN}")
            return RunResult(
                folder.path, folder.path / REPORT, scores, already_finished=True, no_scores=why_no_scores(recipe)
            )
        run_ids = tuple(dict.fromkeys([recipe.run_id, *recorded_ids(folder.path)]))
        store = Store(folder.path / "checkpoints", keep=recipe.train.keep, run_ids=run_ids)
        with exit_on_signal(stop, progress, "before the first step"):
            session, cursor = prepare_session(recipe, folder, store, chosen, progress, world)
        progress.step = session.step
        with RunCallbacks(session, folder, store, cursor, stop, progress) as callbacks:
            scores = train_and_finish(session, callbacks)
        return RunResult(
            folder.path, folder.path / REPORT, scores, already_finished=False, no_scores=why_no_scores(recipe)
        )


def refuse_unusable(recipe: Recipe, resume: Path | None) -> None:
    """Refuse a recipe without images, a folder that is not a run, and a number of processes that does not fit."""
    if not recipe.dataset.params.holds_images:
        raise no_images()
    if resume is not None and not (resume / RECIPE).is_file():
        expect = f"a folder that holds {RECIPE}"
        raise error("SD-C445", "not a run folder", where="--resume", got=str(resume), expect=expect)
    raise_all(check_processes(recipe, processes.placement().size))


def train_and_finish(session: Session, callbacks: RunCallbacks) -> dict[str, Scores]:
    """Train the remaining steps, then sample, score and report."""
    stop, progress = callbacks.stop, callbacks.progress
    with exit_on_signal(stop, progress, "before the first step"):
        callbacks.catch_up(session)
    progress.stage("training", total=session.recipe.train.steps, done=session.step)
    try:
        with training_memory_errors(session.recipe), loss_errors(session):
            if session.step == 0:
                with exit_on_signal(stop, progress, "before the first step"):
                    check_data(session)
                    for note in [*check_losses(session), *broken_contracts(session)]:
                        progress.warn(note)
            train(session, callbacks)
    except NonFinite as fault:
        raise callbacks.save_before_nonfinite(session, fault) from fault
    stop.alone = True  # no step follows after which all ranks could stop together
    with exit_on_signal(stop, progress, "after the last step"):
        return finish(session, callbacks)


def broken_contracts(session: Session) -> Iterator[str]:
    """Yield what the conformance kit finds in the components of plugins, apart from data and losses: `check_data` and
    `check_losses` test these.

    These are warnings: the kit tests default settings on tiny tensors, not the run.
    """
    recipe = session.recipe
    if not (session.world.main and third_party()):
        return
    from sddit.testing.kit import contract_problems, lacks_values

    network = (recipe.optimizer, recipe.noise_schedule, recipe.pair_sampler, recipe.backbone)
    for component in (used.component for used in (*network, recipe.sampler)):
        name = f"{registry(component.kind).singular} {component.qualified}"
        if component.origin in third_party() and (keys := lacks_values(component)):
            yield f"{name} is not tested: {keys[0]!r} has no default; add Field(..., examples=[...]) to test it with"
        elif problems := contract_problems(component):
            row = host().rows[component.origin]
            more = f"{len(problems)} problems; " if len(problems) > 1 else ""
            command = f"sddit-run check {row.file or row.name}"
            yield f"{name} breaks its contract: {problems[0].what}; {more}{command}"


@contextmanager
def locked_run_folder(path: Path, world: World) -> Iterator[RunFolder]:
    """Lock a run folder. The main rank holds the lock for all ranks, and only it writes to the folder."""
    with RunFolder(path) if world.main else nullcontext(RunFolder(path)) as folder:
        folder.path = Path(world.from_main(lambda: str(folder.path)))
        yield folder


@contextmanager
def exit_on_signal(stop: StopSignals, progress: Progress, when: str) -> Iterator[None]:
    """Let a signal end the process at once, with the documented status, where nothing has to be saved."""
    try:
        with stop.at_once():
            yield
    except Stopped:
        stop_if_asked(stop, progress, when)


def training_memory_errors(recipe: Recipe) -> AbstractContextManager[None]:
    """Turn out-of-memory exceptions of training into errors that name settings with a lower memory use."""
    batch = recipe.train.micro_batch or recipe.train.batch
    less = [] if batch == 1 else [f"train.micro_batch = {max(n for n in range(1, batch // 2 + 1) if batch % n == 0)}"]
    if not recipe.train.activation_checkpointing:
        less.append("train.activation_checkpointing = true")
    fix = " or ".join(less) or "a smaller network or a larger device"
    return memory_errors("train", got=f"{batch} images at once", fix=fix)


def finish(session: Session, callbacks: RunCallbacks) -> dict[str, Scores]:
    """Write samples, scores, probe and report. Samples that are latents are kept as such, and not scored."""
    recipe, folder, progress = session.recipe, callbacks.folder, callbacks.progress
    request = scoring_request(recipe, recipe.evaluate.samples)
    parts = sample_images.write_samples(session, folder, request, callbacks.to_images, progress)
    weights = session.weights(recipe.evaluate.weights)  # every rank calls this: each may hold a shard
    if parts is None:
        return {}
    scores: dict[str, Scores] = {}
    if callbacks.scorer is not None:
        progress.stage("scoring")
        scores = score_kept(callbacks.scorer, folder.path, request, recipe.evaluate.batch)
    callbacks.log_scores(session, scores)
    folder.write_json(SCORES, {label: one.to_json() for label, one in scores.items()})
    if recipe.evaluate.probe:
        write_probe(folder, probe(weights, session.schedule, recipe, progress))
    callbacks.recover_log()
    cost = cost_of(recipe, folder.path)
    folder.write_json(COST, asdict(cost))
    progress.stage("report")
    folder.write_text(REPORT, write_run_report(recipe, folder.path, scores, cost))
    write_result(folder, recipe.run_id, session.step, sample_images.preview_name(session.step))
    parts.remove()
    progress.end_stage()
    return scores


def evaluate_run(folder: Path, *, device: str, progress: Progress, weights: str = "") -> dict[str, Scores]:
    """Sample and score a run at its newest intact checkpoint, finished or not. Changes nothing in its folder.

    `weights` is `student`, or the label of an [ema] or of an average; empty: the weights that the run samples with.
    """
    chosen = choose_device(device)
    refuse_latents(folder, "scores")
    model = load_run_with_data(folder, weights)
    recipe = model.require_recipe()
    if not recipe.dataset.params.holds_images:
        raise no_images()
    train_set: Dataset = recipe.dataset.build(split="train")
    network, schedule = model.backbone.to(chosen), model.require_schedule()
    with join_processes(chosen, recipe.train.timeout) as world:
        request = scoring_request(recipe, recipe.evaluate.samples)
        to_images = image_converter(recipe, train_set, chosen)
        scorer = scorer_of(recipe, train_set, to_images, chosen) if world.main else None
        converts = {IMAGES: to_images}
        second = load_second_network(recipe, chosen, step=model.step)
        parts = generate_parts(network, schedule, recipe, converts, request, world, progress, second=second)
        return score_parts(scorer, parts, len(request.ids))
