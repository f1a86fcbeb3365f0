"""The training of a run: from the newest checkpoint on, each phase with its commits, to the weights that it results in.

`job.train` computes and writes nothing; what is written, and when, is decided here.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from job.data.splits import Splits
from job.errors import CheckpointDamaged, Interrupted, StorageError
from job.model.classifier import Classifier
from job.observe import events
from job.observe.progress import Context
from job.phases import Phase
from job.run.checkpoint import Arrays, Checkpoints, Restored
from job.run.committer import Committer
from job.run.following import NoCommits
from job.run.record import RunRecord
from job.schema import CheckpointEntry, EpochResult
from job.train import device, loop, schedule
from job.train.collective import Collective
from job.train.state import PhaseState
from job.train.step import Recipe


@dataclass(kw_only=True)
class Training:
    """Restores, trains and commits, for one attempt; `phases` are all of the run, `history` its epochs so far."""

    context: Context
    record: RunRecord
    checkpoints: Checkpoints
    committer: Committer | NoCommits
    collective: Collective
    phases: Sequence[Phase]
    checkpoint_every_seconds: float
    history: list[EpochResult] = field(default_factory=list, init=False)
    _restored: Restored | None = field(default=None, init=False)
    _committed_at: float = field(default=0.0, init=False)
    _taken: tuple[int, Arrays] | None = field(default=None, init=False)

    def restore(self) -> None:
        """Read the newest good checkpoint, for its phase to load, and the history up to it."""

        def on_damaged(entry: CheckpointEntry, error: CheckpointDamaged) -> None:
            self.context.observer.event(events.CheckpointDamaged(entry.name, reason=error.message))

        with self.context.progress.entering("restore", "restore"):
            self._restored = self.checkpoints.restore(on_damaged)
            self.collective.team.tell("checkpoint", self._restored and self._restored[0].model_dump_json())
        if self._restored is None:
            if self.record.content.checkpoints:
                self.context.observer.event(events.NothingRestored(checkpoint=None, phase="prepare", step=0))
            return
        entry, _ = self._restored
        self.context.progress.committed(entry.name, entry.phase, entry.step)
        self.context.observer.event(events.Restored(entry.name, phase=entry.phase, step=entry.step))
        self.history[:] = self.record.content.history[: entry.num_epochs]

    def phases_left(self) -> Sequence[Phase]:
        """The phases from the restored one on; that one may be complete."""
        names = [phase.name for phase in self.phases]
        return self.phases[names.index(self._restored[0].phase) if self._restored else 0 :]

    def train(self, phase: Phase, classifier: Classifier, splits: Splits, recipe: Recipe) -> None:
        """Train one phase to its end, with a commit after every epoch, now and then inside one, and on a stop."""
        self.context.check_stop()
        until_now = self.phases[: self.phases.index(phase) + 1]
        changed_from = min(classifier.first_trained(one.unfreeze) for one in until_now)
        state = PhaseState(classifier, phase, changed_from=changed_from)
        steps_lost = max(attempt.reached.get(phase.name, 0) for attempt in self.record.content.attempts)
        step = 0
        if self._restored is not None:
            (entry, arrays), self._restored = self._restored, None
            step = entry.step
            with self.context.progress.ledger.during("restore"):
                state.load(arrays, step=step)
            del arrays
        history = schedule.history_of(phase, self.history)
        if not schedule.is_over(phase, history):
            self.context.observer.event(events.PhaseStarted(phase.name, len(history), step, phase.learning_rate))
            self.record.update(state=phase.name)
        self._committed_at = time.monotonic()
        with self.context.progress.entering(phase.name, "idle"):
            try:
                for fact in loop.train_phase(
                    state,
                    train=splits.train,
                    validation=splits.validation,
                    recipe=recipe,
                    position=loop.Position(history=history, step=step, steps_lost=steps_lost),
                    ledger=self.context.progress.ledger,
                    collective=self.collective,
                ):
                    step = self.context.progress.step = self.context.progress.reached[phase.name] = fact.step
                    if isinstance(fact, events.EpochFinished):
                        self._report_epoch(fact)
                        self._taken = None
                        self._commit(state.arrays, phase, step, reason="epoch", must_stay=self._is_best(phase))
                    else:
                        self._report_step(fact, state)
                        self._commit_now_and_then(state, step)
                    self.committer.report()
                    self.context.check_stop()
                self._flush()
            except Interrupted:
                if step > 0:
                    # If the store fails now, which is reported, the last commit stands.
                    with contextlib.suppress(StorageError):
                        self._commit(state.arrays, phase, step, reason="stop")
                        self._flush()
                raise
            self._end_phase(state, step)

    def _is_best(self, phase: Phase) -> bool:
        """Whether the phase keeps its best epoch, and this is its newest one."""
        history = schedule.history_of(phase, self.history)
        return phase.keep == "best" and schedule.best(phase, history) == len(history) - 1

    def _end_phase(self, state: PhaseState, step: int) -> None:
        """Give the model the weights that are the result of the phase."""
        phase, history = state.phase, schedule.history_of(state.phase, self.history)
        index = schedule.best(phase, history)
        if len(history) < phase.epochs:
            self.context.observer.event(events.StoppedEarly(phase.name, step, best_epoch=index))
        best = history[index]
        if phase.keep == "best" and best.step != step:
            with self.context.progress.ledger.during("restore"):
                entry = self.checkpoints.best_entry(phase.name, best.step)
                self.collective.team.tell("best checkpoint", entry.model_dump_json())
                state.load(self.checkpoints.load_best(entry), step=best.step)
            self.context.observer.event(events.BestRestored(
                phase.name, index, checkpoint=entry.name, validation_loss=best.validation_loss,
                validation_accuracy=best.validation_accuracy,
                validation_balanced_accuracy=best.validation_balanced_accuracy,
            ))  # fmt: skip
        state.finish()

    def _commit_now_and_then(self, state: PhaseState, step: int) -> None:
        """Inside an epoch; of several workers, the state after a step once the next one has followed it.

        Only that one shows that its sums were whole (`Collective.confirm`).
        """
        if self._taken is not None:
            (taken_step, arrays), self._taken = self._taken, None
            self._commit(lambda: arrays, state.phase, taken_step, reason="interval")
        elif time.monotonic() - self._committed_at >= self.checkpoint_every_seconds:
            share = self.collective.share
            if share.num_workers == 1:
                self._commit(state.arrays, state.phase, step, reason="interval")
            elif share.worker == 0:
                self._taken = step, state.arrays()

    def _commit(
        self, arrays: Callable[[], Arrays], phase: Phase, step: int, *, reason: str, must_stay: bool = False
    ) -> None:
        with self.context.progress.ledger.during("checkpoint_blocking"):
            self.committer.submit(
                arrays, phase=phase.name, step=step, reason=reason, history=self.history, must_stay=must_stay
            )
        self._committed_at = time.monotonic()

    def _flush(self) -> None:
        with self.context.progress.ledger.during("checkpoint_blocking"):
            self.committer.flush()

    def _report_epoch(self, epoch: events.EpochFinished) -> None:
        result = {name: value for name, value in vars(epoch).items() if name != "gpu_memory"}
        self.history.append(EpochResult(**result, ended=datetime.now(UTC)))
        self.context.observer.event(epoch)

    def _report_step(self, done: events.StepDone, state: PhaseState) -> None:
        if done.is_first:
            self.context.observer.event(events.StepCompiled(done.phase, done.seconds, gpu_memory=device.gpu_memory()))
        self.context.observer.step(done, state.running_means)
