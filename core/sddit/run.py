"""One run, from a recipe to a report: train, sample, score, write. Running it again continues where it stopped.

What is done is read from the folder, never remembered elsewhere: a checkpoint of the last step means trained,
`report.html` means finished. Each file is put in place whole, so a kill at any moment loses at most the steps since the
last save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sddit import environment as surroundings
from sddit import processes
from sddit.api import load_run
from sddit.data.declared import no_images
from sddit.errors import Problem, SdditError, error, one_of, raise_all
from sddit.evaluation import pictures
from sddit.evaluation.figures import SCORE
from sddit.evaluation.probe import PROBE, lacks_probe
from sddit.evaluation.scores import Scorer, Scores
from sddit.evaluation.tokens import probe, write_probe
from sddit.generate import LABELS, Request, draw_images
from sddit.interfaces import Dataset, FeatureExtractor, NoiseSchedule, Tracker
from sddit.memory import memory_errors
from sddit.progress import Progress
from sddit.recipes.checks import check_processes
from sddit.recipes.differences import differences
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.reporting import cost_of, write_run_report
from sddit.training.checkpoints import Checkpoint, Store
from sddit.training.distribution import World, joined, refuse_differences, refuse_drift
from sddit.training.evidence import evidence
from sddit.training.loop import NonFinite, train
from sddit.training.run_folder import (
    CHANGES,
    COST,
    ENVIRONMENT,
    METRICS,
    RECIPE,
    REPORT,
    SCORES,
    MetricsLog,
    RunFolder,
    last_metrics,
    read_json,
    recipe_in,
    refuse_changed,
    unreadable,
)
from sddit.training.saving import Saver
from sddit.training.session import Session, build_session, files_of, restore
from sddit.training.signals import Stopped, StopSignals
from sddit.training.spikes import Spikes

SAMPLES = "samples/samples.npz"
ASIDE = "aside-"  # where --fresh moves what a run folder held


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
    chosen = surroundings.choose_device(device)
    if not recipe.dataset.params.holds_images:
        raise no_images()
    if resume is not None and not (resume / RECIPE).is_file():
        raise error(
            "SD-C445", "not a run folder", where="--resume", got=str(resume), expect=f"a folder that holds {RECIPE}"
        )
    raise_all(check_processes(recipe, processes.count()))
    place = resume or out / f"{recipe.name}-{recipe.run_id}"
    with joined(chosen, recipe.train.timeout) as world, held(place, world) as folder, world.stop as stop:
        refuse_differences(world, {"recipe, data and plugins": recipe.run_id, "packages": surroundings.packages()})
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


# --------------------------------------------------------------------------------------------------------------------
# Before the first step
# --------------------------------------------------------------------------------------------------------------------


@contextmanager
def held(place: Path, world: World) -> Iterator[RunFolder]:
    """The run folder, which the main rank holds for all and alone writes to."""
    with RunFolder(place) if world.main else nullcontext(RunFolder(place)) as folder:
        folder.path = Path(world.from_main(lambda: str(folder.path)))
        yield folder


def begin(
    recipe: Recipe,
    folder: RunFolder,
    device: torch.device,
    progress: Progress,
    *,
    fresh: bool,
    allow: Sequence[str],
    resumed: bool,
) -> bool:
    """Say what is to be run, and bring the folder in order for it. Returns whether all is done already."""
    announce(recipe, folder, device, progress)
    processes.forget_failures(folder.path)
    if fresh:
        set_aside(folder.path)
    changed = accept_changes(folder, recipe, allow, resumed=resumed)
    whole = all((folder.path / name).is_file() for name in (REPORT, SCORES))
    return whole and not changed and not lacks_probe(folder.path, recipe)


def announce(recipe: Recipe, folder: RunFolder, device: torch.device, progress: Progress) -> None:
    """The first lines of a run: what, on which data, where, with which kernel, and what was noticed."""
    facts = recipe.facts
    classes = f"{facts.num_classes} classes" if facts.num_classes else "no classes"
    kernel = f"attention {recipe.attention.component.name}, {recipe.train.precision}"
    progress.note(f"{recipe.name}: {facts.source}, {classes}")
    progress.note(f"run folder {folder.path}, {surroundings.device_name(device)}, {kernel}")
    if folder.killed:
        progress.note(f"the last process here, {folder.killed}, ended without a word: killed, or out of memory")
    for warning in recipe.warnings:
        progress.warn(warning)
    if (sibling := newest_sibling(folder.path, recipe.name)) and not (folder.path / RECIPE).is_file():
        with suppress(SdditError):  # a damaged neighbour is no matter of this run
            for key, old, new, _ in differences(read_json(sibling / RECIPE), recipe.to_json()):
                progress.note(f"other than {sibling.name}: {key} {old} -> {new}")


def newest_sibling(folder: Path, name: str) -> Path | None:
    """The newest other run of a recipe of this name."""
    others = [path for path in folder.parent.glob(f"{name}-*") if path != folder and (path / RECIPE).is_file()]
    return max(others, key=lambda path: (path / RECIPE).stat().st_mtime, default=None)


def set_aside(folder: Path) -> None:
    """Move what a run folder holds into `aside-N` within it; nothing is deleted."""
    held = [path for path in folder.iterdir() if path.name != "run.lock" and not path.name.startswith(ASIDE)]
    if not held:
        return
    numbers = [int(rest) for path in folder.glob(f"{ASIDE}*") if (rest := path.name.removeprefix(ASIDE)).isdecimal()]
    aside = folder / f"{ASIDE}{1 + max(numbers, default=0)}"
    aside.mkdir()
    for path in held:
        path.rename(aside / path.name)


def accept_changes(folder: RunFolder, recipe: Recipe, allow: Sequence[str], *, resumed: bool) -> bool:
    """Whether this recipe changes the numbers of the run in the folder. Raises unless each such key is allowed."""
    if not (folder.path / RECIPE).is_file():
        return False
    refuse_changed(folder.path / RECIPE)
    found = [change for change in differences(read_json(folder.path / RECIPE), recipe.to_json()) if change[3] != "free"]
    raise_all(refused(folder.path, found, allow, resumed=resumed))
    if not found:
        return False
    earlier = read_json(folder.path / CHANGES, list) if (folder.path / CHANGES).is_file() else []
    folder.write_json(CHANGES, earlier + [{"key": key, "from": old, "to": new} for key, old, new, _ in found])
    for stale in (REPORT, SCORES, PROBE):
        (folder.path / stale).unlink(missing_ok=True)
    return True


def refused(
    folder: Path, changes: Sequence[tuple[str, Any, Any, str]], allow: Sequence[str], *, resumed: bool
) -> Iterator[Problem]:
    """A problem for every change that needs permission, and for every one that no permission makes possible."""
    elsewhere = "run without --resume: it gets its own folder" if resumed else "begin anew with --fresh"
    known = [key for key, *_ in changes]
    for key in allow:
        if not any(covers(key, changed) for changed in known):
            yield Problem(
                "SD-R161",
                f"nothing to allow: {key!r} does not differ",
                where="--allow-change",
                got=key,
                expect=one_of(key, known) if known else "no key: nothing differs",
            )
    for key, old, new, kind in changes:
        got = f"{old} -> {new}"
        if kind == "structural":
            yield Problem(
                "SD-C410", f"the checkpoint is of another model: {key}", where=str(folder), got=got, fix=elsewhere
            )
        elif key == "train.steps" and old is not None and new < old:
            yield Problem(
                "SD-C422",
                "a run cannot be made shorter",
                where=str(folder),
                got=got,
                expect=f"at least {old}",
                fix=elsewhere,
            )
        elif not any(covers(given, key) for given in allow):
            fix = f"--allow-change {key}, or {elsewhere}" if resumed else elsewhere
            yield Problem("SD-C420", f"the recipe differs from the run's: {key}", where=str(folder), got=got, fix=fix)


def covers(given: str, key: str) -> bool:
    """Whether permission for `given` is permission for `key`: the same key, or a table around it."""
    return key == given or key.startswith(f"{given}.")


def prepare(
    recipe: Recipe, folder: RunFolder, store: Store, device: torch.device, progress: Progress, world: World
) -> tuple[Session, int]:
    """A session at the newest good checkpoint of the folder, or before its first step; and where its log was then."""
    checkpoint = newest(store, world)
    while store.notices:
        progress.warn(store.notices.pop(0))
    surroundings.configure(recipe, device, threads=checkpoint.state.get("threads") if checkpoint else None)
    if world.main:
        describe(recipe, folder, device)
    session = build_session(recipe, device, resumed=checkpoint is not None, world=world)
    for note in session.notes:
        progress.warn(note)
    if checkpoint is None:
        if (lost := steps_logged(folder.path)) > 0:
            progress.warn(
                f"{METRICS} tells of {lost:,} steps, and there is no checkpoint of them: training begins anew"
            )
        return session, 0
    state = restore(session, checkpoint)
    progress.note(f"continuing after step {session.step} of {session.total_steps}")
    return session, int(state["log_cursor"])


def newest(store: Store, world: World) -> Checkpoint | None:
    """The checkpoint to continue from: the main rank finds it, each other one reads the same."""
    found: list[Checkpoint | None] = []

    def find() -> int | None:
        store.clean()
        found.append(store.latest())
        return found[0].step if found[0] else None

    step = world.from_main(find)
    if world.main:
        return found[0]
    return None if step is None else store.open(step)


def describe(recipe: Recipe, folder: RunFolder, device: torch.device) -> None:
    """Leave in the folder all that says what is run, and with what."""
    folder.write_sealed_json(RECIPE, recipe.to_json())
    for name, file in recipe.plugin_files.items():  # beside the recipe, so that the folder says all that it needs
        folder.write_bytes(Path(name).name, file.read_bytes())
    folder.write_json(ENVIRONMENT, surroundings.environment(recipe, device))


def steps_logged(folder: Path) -> int:
    """The steps that the log of a run knows of; none in a damaged one."""
    try:
        return int(last_metrics(folder / METRICS).get("step", 0))
    except (SdditError, ValueError, TypeError):
        return 0


# --------------------------------------------------------------------------------------------------------------------
# Around the steps
# --------------------------------------------------------------------------------------------------------------------


class Watcher:
    """What happens between steps: metrics, previews, scores, checkpoints, stopping."""

    def __init__(
        self, session: Session, folder: RunFolder, store: Store, cursor: int, stop: StopSignals, progress: Progress
    ) -> None:
        recipe = session.recipe
        self.folder, self.store, self.stop, self.progress = folder, store, stop, progress
        self.saver = Saver(store, beside=recipe.train.save_async)
        self.save_every = recipe.train.save_every
        self.preview_steps = preview_steps(recipe)
        self.score_steps = score_steps(recipe)
        self.spikes = Spikes()
        self.log: MetricsLog | None = None  # of the main rank, as are the next two
        self.trackers: list[Tracker] = []
        self.scorer: Scorer | None = None
        if session.world.main:
            self.log = MetricsLog(folder.path / METRICS, cursor)
            self.trackers = [chosen.build(folder=folder.path) for chosen in recipe.trackers.values()]
            self.scorer = scorer_of(recipe, session.dataset, session.device)
        if self.log is not None and self.log.shortened:
            progress.warn(f"{METRICS} lacks rows that the checkpoint knows of; it goes on from what is left")

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, cause: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            self.settle()
        else:
            self.saver.abandon()  # asked twice to stop
        for tracker in self.trackers:
            tracker.close()
        if self.log is not None:
            self.log.close()

    def logged(self, session: Session, row: Mapping[str, float]) -> None:
        """A line of metrics: to the log, the trackers and the screen."""
        self.write(session.step, row)
        if "grad_norm" in row and (times := self.spikes.seen(row["grad_norm"])):
            self.progress.warn(f"step {session.step}: the gradient is {times:.0f} times as long as it was on average")
        self.progress.advance(session.step, row)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """A line of the log, which only the main rank has."""
        if self.log is not None:
            self.log.append(row)
        for tracker in self.trackers:
            tracker.log(step, row)

    def stepped(self, session: Session) -> None:
        """Preview, score, save, stop: in this order, so that a stop loses nothing."""
        self.progress.step = session.step
        self.saver.poll()
        if session.skipped[-1:] == [session.step - 1]:
            self.progress.warn(f"step {session.step - 1} skipped: not finite; {len(session.skipped)} in all")
        done = session.step == session.total_steps
        with suppress(Stopped), self.stop.at_once():  # what a signal cuts short is caught up on
            if session.step in self.preview_steps:
                pictures.write_preview(session, self.folder)
            if session.step in self.score_steps:
                self.score(session)
        if done or self.stop.requested or session.step % self.save_every == 0:
            self.save(session)
        if done or self.stop.requested:
            session.world.from_main(self.saver.wait)
        self.tell()
        stop_if_asked(self.stop, self.progress, f"after step {session.step} of {session.total_steps}")

    def catch_up(self, session: Session) -> None:
        """Take the preview and the scores that a stop cut short at the step where the run goes on."""
        shown, scored = session.world.from_main(lambda: self.done_at(session.step))
        if session.step in self.preview_steps and not shown:
            pictures.write_preview(session, self.folder)
        if session.step in self.score_steps and not scored:
            self.score(session)

    def done_at(self, step: int) -> tuple[bool, bool]:
        """Whether the folder has the preview of a step, and its scores."""
        row = last_metrics(self.folder.path / METRICS)
        scored = row.get("step") == step and any(name.startswith(SCORE) for name in row)
        return (self.folder.path / pictures.preview_name(step)).is_file(), scored

    def score(self, session: Session) -> None:
        """Scores while training, of as many images as a distance is made of."""
        if session.recipe.features:
            count = min(session.recipe.evaluate.samples, session.recipe.facts.test_size)
            drawn = draw_of(session, count)
            session.world.from_main(lambda: self.scored(session, score_images(self.scorer, *drawn, own=False)))

    def scored(self, session: Session, scores: Mapping[str, Scores]) -> None:
        """A line of the log that holds scores, of those that the arms of an ablation are compared by."""
        if not scores:
            return
        row = {"step": session.step, "images": session.step * session.recipe.train.batch, "seconds": session.seconds}
        row |= {f"{SCORE}{name}.{figure}": value for name, one in scores.items() for figure, value in one.course()}
        self.write(session.step, row)

    def save(self, session: Session) -> None:
        """Save a checkpoint, or begin to."""
        refuse_drift(session.world, session.student.state_dict())
        cursor = self.log.sync() if self.log is not None else 0
        files = files_of(session, {"log_cursor": cursor}, copy=self.saver.beside and session.world.main)
        session.world.from_main(lambda: self.saver.save(session.step, files))

    def settle(self) -> None:
        """Let the save under way end; one that fails is told beside what else went wrong."""
        try:
            self.saver.wait()
        except SdditError as failure:
            for problem in failure.problems:
                self.progress.warn(f"{problem.what} [{problem.code}]")

    def tell(self) -> None:
        """Show what the store noticed."""
        while self.store.notices:
            self.progress.warn(self.store.notices.pop(0))

    def kept(self, session: Session, fault: NonFinite) -> SdditError:
        """Keep the state before a step that was not finite, and what is known of the step. Returns the error that names it."""
        self.save(session)
        session.world.from_main(self.saver.wait)
        facts = evidence(session, fault.bad, self.folder.path, self.store.place(session.step))
        place = self.folder.path / f"non-finite-{session.step:06d}.json"
        if session.world.main:
            self.folder.write_json(place.name, facts)
        problem = fault.problems[0]
        got = f"{problem.got}; it began in {facts['began_in']}" if facts["began_in"] else problem.got
        return SdditError(
            replace(problem, got=got, fix=f"{problem.fix}. It is repeated by  {facts['repeat']}   facts: {place}")
        )


def training_memory(recipe: Recipe) -> AbstractContextManager[None]:
    """Around training: memory that runs out is told with what would take less of it."""
    batch = recipe.train.micro_batch or recipe.train.batch
    less = [] if batch == 1 else [f"train.micro_batch = {max(n for n in range(1, batch // 2 + 1) if batch % n == 0)}"]
    if not recipe.train.activation_checkpointing:
        less.append("train.activation_checkpointing = true")
    return memory_errors(
        "train", got=f"{batch} images at once", fix=" or ".join(less) or "a smaller network or a larger device"
    )


def preview_steps(recipe: Recipe) -> set[int]:
    """Evenly over the run, the last step included."""
    count = recipe.evaluate.previews
    return {round(recipe.train.steps * (k + 1) / count) for k in range(count)} - {0}


def score_steps(recipe: Recipe) -> set[int]:
    """Evenly over the run, but for the last step, which is scored in any case."""
    parts = recipe.evaluate.during + 1
    return {round(recipe.train.steps * k / parts) for k in range(1, parts)} - {0, recipe.train.steps}


@contextmanager
def ending(stop: StopSignals, progress: Progress, when: str) -> Iterator[None]:
    """Where nothing has to be saved: a signal ends the process at once, with the documented status."""
    try:
        with stop.at_once():
            yield
    except Stopped:
        stop_if_asked(stop, progress, when)


def stop_if_asked(stop: StopSignals, progress: Progress, when: str) -> None:
    """End the process with the documented status if a signal asked for it; all that was done is saved by now."""
    if stop.signal is not None:
        progress.note(f"stopped by {stop.signal.name} {when}; the same command continues")
        raise SystemExit(stop.exit_status)


# --------------------------------------------------------------------------------------------------------------------
# After the last step
# --------------------------------------------------------------------------------------------------------------------


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


def begin_sampling(recipe: Recipe, progress: Progress, world: World) -> None:
    """The stage of the samples of the end, a unit for each step of the sampler in each batch of this rank."""
    own = len(range(recipe.evaluate.samples)[world.share(recipe.evaluate.samples)])
    batches = -(-own // recipe.evaluate.batch)
    progress.stage("sampling", total=batches * recipe.sampler.params.steps)


def draw_of(
    session: Session, count: int, callback: Callable[[int, Tensor], None] | None = None
) -> tuple[Request, Tensor]:
    """The first `count` of the images that are scored, with the weights as they are now."""
    weights = session.weights(session.recipe.sampled_weights)
    return draw(
        weights, session.schedule, session.recipe, session.dataset, session.device, session.world, count, callback
    )


def draw(
    backbone: nn.Module,
    schedule: NoiseSchedule,
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    world: World,
    count: int,
    callback: Callable[[int, Tensor], None] | None = None,
) -> tuple[Request, Tensor]:
    """The images that are scored, of the classes that the recipe asks for, uint8 [count, 3, H, W] on the main rank."""
    request = LABELS[recipe.evaluate.labels](recipe.shapes.num_classes, count, recipe.seed)
    images = draw_images(backbone, schedule, recipe, dataset, request, device=device, world=world, callback=callback)
    return request, images


def scorer_of(recipe: Recipe, train_set: Dataset, device: torch.device) -> Scorer | None:
    """What scores the samples of a recipe; None where it names no extractor."""
    if not recipe.features:
        return None
    test_set = recipe.dataset.build(split="test")
    return Scorer(train_set, test_set, extractors(recipe, device), recipe.evaluate, recipe.seed)


def score_images(scorer: Scorer | None, request: Request, images: Tensor, *, own: bool = True) -> dict[str, Scores]:
    """The scores of the images that were asked for; `own`: also those that only some extractors measure.

    Without a scorer there are none.
    """
    return {} if scorer is None else scorer.score(images, torch.tensor(request.labels), own=own)


def evaluate_run(folder: Path, *, device: str, progress: Progress) -> dict[str, Scores]:
    """Sample and score a run at its newest good checkpoint, finished or not. Changes nothing in its folder."""
    chosen = surroundings.choose_device(device)
    resolve(recipe_in(folder))  # which needs the data, and says what is wrong with it
    model = load_run(folder)
    recipe = model.require_recipe()
    if not recipe.dataset.params.holds_images:
        raise no_images()
    train_set: Dataset = recipe.dataset.build(split="train")
    schedule = model.require_schedule()
    with joined(chosen, recipe.train.timeout) as world:
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


def extractors(recipe: Recipe, device: torch.device) -> dict[str, FeatureExtractor]:
    """The feature extractors of the scores, by name."""
    return {name: chosen.build(facts=recipe.facts, device=device) for name, chosen in recipe.features.items()}


def read_scores(folder: Path) -> dict[str, Scores]:
    """The scores of a finished run."""
    fix = "delete it: the same command scores again"
    try:
        return {label: Scores(**one) for label, one in read_json(folder / SCORES, fix=fix).items()}
    except TypeError as fault:
        raise unreadable(folder / SCORES, str(fault)[:160], fix) from fault
