"""Log, preview, score, save and stop between the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

from sddit.distributed.signals import Stopped, StopSignals
from sddit.distributed.world import refuse_drift
from sddit.errors import SdditError
from sddit.evaluation import sample_images
from sddit.evaluation.monitors import GRADIENT_SPIKE
from sddit.evaluation.scores import Scores
from sddit.evaluation.scoring import score_parts, scorer_of
from sddit.generation import IMAGES, image_converter, sample_session, scoring_request
from sddit.interfaces import Tracker
from sddit.interfaces.metric_names import SCORE
from sddit.plugins.leftovers import end_if_forked
from sddit.progress import Progress
from sddit.runs.checkpointing import Saver
from sddit.storage.atomic import storage_errors
from sddit.storage.averages import snapshot_store
from sddit.storage.checkpoints import Store
from sddit.storage.lock import LOCK, refuse_lost_locks
from sddit.storage.manifest import Content
from sddit.storage.metrics_log import MetricsLog, is_score_of, last_metrics
from sddit.storage.run_folder import METRICS, RunFolder
from sddit.training.nonfinite import NonFinite
from sddit.training.nonfinite_report import nonfinite_report
from sddit.training.session import Session
from sddit.training.state import checkpoint_files, snapshot_files

MIN_NORMS = 3  # gradient norms before their average is used


class GradientSpikes:
    """Find gradient norms far above their running average: often the first sign of divergence."""

    def __init__(self) -> None:
        self.mean, self.count = 0.0, 0

    def observe(self, norm: float) -> float:
        """Return the norm as a multiple of the average if it is a spike, else 0. A spike is not averaged itself."""
        if self.count >= MIN_NORMS and norm > GRADIENT_SPIKE * self.mean > 0:
            return norm / self.mean
        if math.isfinite(norm):
            self.count += 1
            self.mean += (norm - self.mean) / self.count
        return 0.0


class RunCallbacks:
    """Callbacks of the training loop: log, preview, score, save, stop."""

    def __init__(
        self, session: Session, folder: RunFolder, store: Store, cursor: int, stop: StopSignals, progress: Progress
    ) -> None:
        recipe = session.recipe
        self.folder, self.store, self.stop, self.progress = folder, store, stop, progress
        self.saver = Saver(store, background=recipe.train.save_async)
        self.snapshots = snapshot_store(folder.path, store.run_ids)
        steps, previews, parts = recipe.train.steps, recipe.evaluate.previews, recipe.evaluate.during + 1
        self.preview_steps = {round(steps * k / previews) for k in range(1, previews + 1)} - {0}  # evenly spaced
        self.score_steps = {round(steps * k / parts) for k in range(1, parts)} - {0, steps}  # the end is always scored
        self.pid = session.pid
        self.spikes = GradientSpikes()
        main = session.world.main  # the only rank with a log, trackers and a scorer
        self.log = MetricsLog(folder.path / METRICS, cursor, session.step) if main else None
        self.trackers: list[Tracker] = [chosen.build(folder=folder.path) for chosen in recipe.trackers.values() if main]
        self.to_images = image_converter(recipe, session.dataset, session.device)
        self.scorer = scorer_of(recipe, session.dataset, self.to_images, session.device) if main else None
        if self.log is not None and self.log.changed:
            progress.warn(
                f"{METRICS} is not as the checkpoint left it: rows were changed or are missing; "
                f"the remaining rows up to step {session.step} are kept"
            )

    def __enter__(self) -> RunCallbacks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, cause: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self.saver.abandon()  # a second signal
        else:
            try:
                self.saver.wait()
            except SdditError as failure:  # a warning, so that it does not hide another error
                for problem in failure.problems:
                    self.progress.warn(f"{problem.what} [{problem.code}]")
        for tracker in self.trackers:
            tracker.close()
        if self.log is not None:
            self.log.close()

    def logged(self, session: Session, row: Mapping[str, float]) -> None:
        """Write a row of metrics to the log and the trackers, and show it."""
        self.write(session.step, row)
        if "grad_norm" in row and (factor := self.spikes.observe(row["grad_norm"])):
            self.progress.warn(f"step {session.step}: the gradient norm is {factor:.0f} times its average so far")
        self.progress.advance(session.step, row)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Append a row to the log and the trackers, on the main rank."""
        end_if_forked(self.pid)
        if self.log is not None:
            self.log.append(row)
            self.show_notices(self.log)
        for tracker in self.trackers:
            tracker.log(step, row)

    def recover_log(self) -> None:
        """Restore the log before it is read, if it was removed while images were sampled and scored."""
        if self.log is not None:
            self.log.recover()
            self.show_notices(self.log)

    def show_notices(self, log: MetricsLog) -> None:
        while log.notices:
            self.progress.warn(log.notices.pop(0))

    def stepped(self, session: Session) -> None:
        """Preview, score, save, stop: in this order, so that a stop loses nothing."""
        self.progress.step = session.step
        with storage_errors(self.folder.path / LOCK):
            refuse_lost_locks()
        self.saver.poll()
        if session.skipped[-1:] == [session.step - 1]:
            self.progress.warn(f"step {session.step - 1} skipped: non-finite; {len(session.skipped)} skipped in total")
        done = session.step == session.total_steps
        with suppress(Stopped), self.stop.at_once():  # `catch_up` repeats what a signal interrupts
            if session.step in self.preview_steps:
                sample_images.write_preview(session, self.folder, self.to_images)
            if session.step in self.score_steps:
                self.score(session)
        self.save_snapshot(session)
        if done or self.stop.requested or session.step % session.recipe.train.save_every == 0:
            self.save(session)
        if done or self.stop.requested:
            session.world.from_main(self.saver.wait)
        for notices in (self.store.notices, self.snapshots.notices):
            while notices:
                self.progress.warn(notices.pop(0))
        stop_if_asked(self.stop, self.progress, f"after step {session.step} of {session.total_steps}")

    def catch_up(self, session: Session) -> None:
        """Write the preview and the scores that a stop interrupted at the step where the run resumes."""
        step, folder, from_main = session.step, self.folder.path, session.world.from_main
        preview = folder / sample_images.preview_name(step)
        if step in self.preview_steps and not from_main(preview.is_file):
            sample_images.write_preview(session, self.folder, self.to_images)
        if step in self.score_steps and not from_main(lambda: is_score_of(step, last_metrics(folder / METRICS))):
            self.score(session)

    def score(self, session: Session) -> None:
        """Score samples during training: `evaluate.samples` images, or fewer if the test split is smaller."""
        if session.recipe.features:
            count = min(session.recipe.evaluate.samples, session.recipe.facts.test_size)
            request = scoring_request(session.recipe, count)
            parts = sample_session(session, request, {IMAGES: self.to_images})
            scores = score_parts(self.scorer, parts, count, own=False)
            session.world.from_main(lambda: self.log_scores(session, scores))

    def log_scores(self, session: Session, scores: Mapping[str, Scores]) -> None:
        """Log the scores by which the arms of an ablation are compared."""
        if not scores:
            return
        row = {"step": session.step, "images": session.step * session.recipe.train.batch, "seconds": session.seconds}
        row |= {f"{SCORE}{name}.{figure}": value for name, one in scores.items() for figure, value in one.course()}
        self.write(session.step, row)

    def save_snapshot(self, session: Session) -> None:
        """Save a snapshot of the EMAs for which one is due, before the checkpoint of that step, which implies it."""
        step, total = session.step, session.total_steps
        if labels := [label for label, ema in session.recipe.ema.items() if ema.has_snapshot(step, total)]:
            files = snapshot_files(session, labels)
            session.world.from_main(lambda: self.write_snapshot(step, files))

    def write_snapshot(self, step: int, files: Mapping[str, Content]) -> None:
        self.snapshots.save(step, files)

    def save(self, session: Session) -> None:
        """Save a checkpoint, or start to save it in the background."""
        refuse_drift(session.world, session.student.state_dict())
        cursor = self.log.sync() if self.log is not None else 0
        if self.log is not None:
            self.show_notices(self.log)
        files = checkpoint_files(session, {"log_cursor": cursor}, copy=self.saver.background and session.world.main)
        session.world.from_main(lambda: self.saver.save(session.step, files))

    def save_before_nonfinite(self, session: Session, fault: NonFinite) -> SdditError:
        """Save the state before a non-finite step and a report of the step. Returns the error that names both."""
        self.save(session)
        session.world.from_main(self.saver.wait)
        facts = nonfinite_report(session, fault.bad, self.folder.path, self.store.path_of(session.step))
        path = self.folder.path / f"non-finite-{session.step:06d}.json"
        if session.world.main:
            self.folder.write_json(path.name, facts)
        problem = fault.problems[0]
        got = f"{problem.got}; it began in {facts['began_in']}" if facts["began_in"] else problem.got
        if facts["first_output"].startswith("loss."):
            guard = "clamp what goes into log, sqrt, exp and division"
            problem = replace(
                problem, fix=f"{facts['first_output']} makes it of finite numbers: {guard}; or {problem.fix}"
            )
        fix = f"{problem.fix}. To reproduce it:  {facts['repeat']}   report: {path}"
        return SdditError(replace(problem, got=got, fix=fix))


def stop_if_asked(stop: StopSignals, progress: Progress, when: str) -> None:
    """End the process with the documented status if a signal arrived. Everything is saved at this point."""
    if stop.signal is not None:
        progress.note(f"stopped by {stop.signal.name} {when}; rerun the same command to resume")
        raise SystemExit(stop.exit_status)
