"""What happens between the steps of a run: metrics, previews, scores, checkpoints, stopping."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

from sddit.distributed.signals import Stopped, StopSignals
from sddit.distributed.world import refuse_drift
from sddit.errors import SdditError
from sddit.evaluation import pictures
from sddit.evaluation.scores import Scorer, Scores
from sddit.evaluation.scoring import draw_of, score_images, scorer_of
from sddit.interfaces import Tracker
from sddit.interfaces.metric_names import SCORE
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.runs.checkpointing import Saver
from sddit.runs.spikes import Spikes
from sddit.storage.checkpoints import Store
from sddit.storage.metrics_log import MetricsLog, last_metrics
from sddit.storage.run_folder import METRICS, RunFolder
from sddit.training.nonfinite import NonFinite
from sddit.training.nonfinite_report import evidence
from sddit.training.session import Session
from sddit.training.state import files_of


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
            self.log = MetricsLog(folder.path / METRICS, cursor, session.step)
            self.trackers = [chosen.build(folder=folder.path) for chosen in recipe.trackers.values()]
            self.scorer = scorer_of(recipe, session.dataset, session.device)
        if self.log is not None and self.log.changed:
            progress.warn(
                f"{METRICS} is not as the checkpoint left it: rows were changed or are missing; those up to step "
                f"{session.step} that are left are kept"
            )

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
        facts = evidence(session, fault.bad, self.folder.path, self.store.path_of(session.step))
        place = self.folder.path / f"non-finite-{session.step:06d}.json"
        if session.world.main:
            self.folder.write_json(place.name, facts)
        problem = fault.problems[0]
        got = f"{problem.got}; it began in {facts['began_in']}" if facts["began_in"] else problem.got
        return SdditError(
            replace(problem, got=got, fix=f"{problem.fix}. It is repeated by  {facts['repeat']}   facts: {place}")
        )


def preview_steps(recipe: Recipe) -> set[int]:
    """Evenly over the run, the last step included."""
    count = recipe.evaluate.previews
    return {round(recipe.train.steps * (k + 1) / count) for k in range(count)} - {0}


def score_steps(recipe: Recipe) -> set[int]:
    """Evenly over the run, but for the last step, which is scored in any case."""
    parts = recipe.evaluate.during + 1
    return {round(recipe.train.steps * k / parts) for k in range(1, parts)} - {0, recipe.train.steps}


def stop_if_asked(stop: StopSignals, progress: Progress, when: str) -> None:
    """End the process with the documented status if a signal asked for it; all that was done is saved by now."""
    if stop.signal is not None:
        progress.note(f"stopped by {stop.signal.name} {when}; the same command continues")
        raise SystemExit(stop.exit_status)
