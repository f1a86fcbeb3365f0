"""The straight line of a run: load, build, restore, train each phase with commits, evaluate, export, finish.

Only this room touches the store, the record and the log; the rooms below take and give values.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from job.data import composition
from job.data.mirror import Fetching
from job.data.splits import DataRequest, Splits, epoch_order, load_splits
from job.data.tfds_source import prepared_builder
from job.errors import CheckpointDamaged, ExitCode, Interrupted, StorageError
from job.model.classifier import Classifier, ModelRequest, build_classifier
from job.observe import events
from job.observe.ledger import by_category, by_stage, goodput
from job.observe.progress import Progress
from job.report import export
from job.report.content import compose
from job.report.gate import missed_gate
from job.run.artefacts import Artefacts
from job.run.checkpoint import Checkpoints
from job.run.commits import Commits
from job.run.record import RunRecord
from job.run.results import Results, measure
from job.schema import CheckpointEntry, EpochResult, StoredFile
from job.settings.resources import evaluation_batch_size
from job.settings.settings import Phase, Settings
from job.storage import ObjectStore
from job.train import loop, numerics
from job.train.loop import EpochDone, num_batches
from job.train.state import PhaseState

Restored = tuple[CheckpointEntry, dict[str, np.ndarray]]


class Pipeline:
    """What is left of a claimed run, and the values that its stages share."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: ObjectStore,
        record: RunRecord,
        reader: events.Reader,
        progress: Progress,
        check_stop: Callable[[], None],
        scratch: Path,
    ) -> None:
        self.settings = settings
        self.store = store
        self.record = record
        self.reader = reader
        self.progress = progress
        self.check_stop = check_stop
        self.scratch = scratch
        self.ledger = progress.ledger
        self.restored: Restored | None = None
        self.checkpoints = Checkpoints(store, record, keep=settings.keep_checkpoints, scratch=scratch)
        self.commits = Commits(self.checkpoints, reader=reader, progress=progress)
        # `auto` is decided once a run: its later attempts may find themselves on other processors.
        self.arithmetic = record.content.inputs.get("arithmetic") or numerics.choose(
            precision=settings.precision, xla=settings.xla
        )

    def carry_out(self) -> None:
        """The straight line; the outcome is then in the record."""
        numerics.prepare_process(deterministic=self.settings.deterministic)
        data_dir, weights = self.fetch()
        with self.load_data(data_dir) as splits:
            classifier = self.build_model(weights, splits)
            with self.commits.running(self.restore()):
                for phase in self.phases_left():
                    self.train(phase, classifier, splits)
            exported = classifier.export()
            results = self.evaluate(exported, classifier, splits)
        files = self.export(exported, splits, results)
        self.finish(results.outcome, files)

    def fetch(self) -> tuple[str | None, str]:
        """The local places of data and weights; what is not here is fetched or downloaded first."""
        settings = self.settings
        fetching = Fetching(settings.cache_dir, scratch=self.scratch, reader=self.reader, check_stop=self.check_stop)
        with self.progress.entering("fetch", "download"):
            data_dir, weights = fetching.inputs(
                data_dir=settings.data_dir, dataset=settings.dataset, weights=settings.weights
            )
            prepared_builder(settings.dataset, data_dir)
            return data_dir, weights

    def load_data(self, data_dir: str | None) -> Splits:
        """The data, whose images are decoded in the background from now on."""
        settings = self.settings
        with self.progress.entering("data", "cache"):
            request = DataRequest(
                dataset=settings.dataset,
                data_dir=data_dir,
                specs=(settings.train_split, settings.validation_split, settings.test_split),
                image_size=settings.image_size,
                cache=settings.cache,
                cache_dir=self.scratch,
            )
            splits = load_splits(request, check_stop=self.check_stop, first_order=self.first_order)
        composition.check_same(self.record.content.inputs.get("data"), splits.identity)
        steps = num_batches(len(splits.train), settings.batch_size)
        self.reader.event(
            events.DATA_LOADED, dataset=splits.identity["dataset"], cache=settings.cache, **splits.identity["splits"],
            **{f"{phase.name}_steps": phase.epochs * steps for phase in settings.phases()},
            classes=splits.composition.summary(),
        )  # fmt: skip
        for name, facts in splits.composition.findings():
            self.reader.warning(name, **facts)
        return splits

    def first_order(self, num_examples: int) -> np.ndarray:
        """The training images as this attempt takes them first, unless the newest checkpoint is damaged."""
        settings, checkpoints = self.settings, self.record.content.checkpoints
        epochs = [(str(phase.name), epoch) for phase in settings.phases() for epoch in range(phase.epochs)]
        done = skip_batches = 0
        if checkpoints:
            newest = checkpoints[-1]
            done, skip_batches = divmod(newest.step, num_batches(num_examples, settings.batch_size))
            done += epochs.index((newest.phase, 0))
        if done >= len(epochs):
            return np.arange(num_examples)
        phase, epoch = epochs[done]
        order = epoch_order(num_examples, seed=settings.seed, phase=phase, epoch=epoch)
        return np.roll(order, -skip_batches * settings.batch_size)

    def build_model(self, weights: str, splits: Splits) -> Classifier:
        """The classifier with its pre-trained weights, once they are known to be those the run began with."""
        settings = self.settings
        # New weights are drawn from the process's one random generator, which the retries of a renewal draw from too.
        alone = self.record.quiet() if weights == "none" else contextlib.nullcontext()
        with self.progress.entering("model", "init"), alone:
            request = ModelRequest(
                backbone=settings.backbone,
                weights=weights,
                image_size=settings.image_size,
                num_classes=len(splits.class_names),
                dropout=settings.dropout,
                flip=settings.flip,
                rotation=settings.rotation,
                policy=numerics.dtype_policy(self.arithmetic["precision"]),
                seed=settings.seed,
            )
            classifier = build_classifier(request)
            inputs = {
                "data": splits.identity,
                "backbone_sha256": classifier.digest(("backbone",)),
                "arithmetic": self.arithmetic,
            }
        self.reader.event(
            events.MODEL_BUILT, backbone=settings.backbone, weights=settings.weights, **self.arithmetic,
            device=numerics.device_name(),
        )  # fmt: skip
        self.record.pin_inputs(inputs)
        return classifier

    def restore(self) -> Sequence[EpochResult]:
        """Read the newest good checkpoint, which its phase will take; returns the history up to it."""

        def on_damaged(entry: CheckpointEntry, error: CheckpointDamaged) -> None:
            self.reader.warning(events.CHECKPOINT_DAMAGED, checkpoint=entry.name, reason=error.message)

        with self.progress.entering("restore", "restore"):
            self.restored = self.checkpoints.restore(on_damaged)
        if self.restored is None:
            if self.record.content.checkpoints:
                self.reader.warning(events.RESTORED, checkpoint=None, phase="prepare", step=0)
            return ()
        entry, _ = self.restored
        self.progress.last_commit = {"checkpoint": entry.name, "phase": entry.phase, "step": entry.step}
        self.reader.event(events.RESTORED, checkpoint=entry.name, phase=entry.phase, step=entry.step)
        return self.record.content.history[: entry.num_epochs]

    def phases_left(self) -> tuple[Phase, ...]:
        """The phases from the restored one on, which may be complete."""
        phases = self.settings.phases()
        names: list[str] = [phase.name for phase in phases]
        return phases[names.index(self.restored[0].phase) if self.restored else 0 :]

    def train(self, phase: Phase, classifier: Classifier, splits: Splits) -> None:
        """Train one phase to its end, with a commit after every epoch, now and then inside one, and on a stop."""
        settings = self.settings
        self.check_stop()
        state = PhaseState(classifier, phase=phase.name, trainable=phase.trainable, learning_rate=phase.learning_rate)
        steps_lost = max(attempt.reached.get(phase.name, 0) for attempt in self.record.content.attempts)
        step = 0
        if self.restored is not None:
            (entry, arrays), self.restored = self.restored, None
            step = entry.step
            with self.ledger.during("restore"):
                state.load(arrays, step=step)
            del arrays
        first_epoch = sum(epoch.phase == phase.name for epoch in self.commits.history)
        if first_epoch < phase.epochs:
            self.reader.event(
                events.PHASE_STARTED, phase=phase.name, epoch=first_epoch, step=step, learning_rate=phase.learning_rate
            )
            self.record.update(state=phase.name)
        committed_at = time.monotonic()
        with self.progress.entering(phase.name, "idle"):
            try:
                for fact in loop.train_phase(
                    state,
                    train=splits.train,
                    validation=splits.validation,
                    batch_size=settings.batch_size,
                    epochs=phase.epochs,
                    seed=settings.seed,
                    xla=self.arithmetic["xla"],
                    first_epoch=first_epoch,
                    step=step,
                    strategy=tf.distribute.get_strategy(),
                    check_stop=self.check_stop,
                    ledger=self.ledger,
                    steps_lost=steps_lost,
                ):
                    step = self.progress.step = self.progress.reached[phase.name] = fact.step
                    if isinstance(fact, EpochDone):
                        self.note_epoch(fact)
                        self.commit(state, step, reason="epoch")
                        committed_at = time.monotonic()
                    else:
                        self.tell_step(fact, state)
                        if time.monotonic() - committed_at >= settings.checkpoint_every_seconds:
                            self.commit(state, step, reason="interval")
                            committed_at = time.monotonic()
                    self.commits.report()
                with self.ledger.during("checkpoint_blocking"):
                    self.commits.flush()
            except Interrupted:
                self.commit_before_leaving(state, step)
                raise

    def commit(self, state: PhaseState, step: int, *, reason: str) -> None:
        with self.ledger.during("checkpoint_blocking"):
            self.commits.submit(state.arrays, state=state.phase, step=step, reason=reason)

    def commit_before_leaving(self, state: PhaseState, step: int) -> None:
        """Save what can be saved; if the store fails now, which is reported, the last commit stands."""
        if step > 0:
            self.commit(state, step, reason="stop")
            with contextlib.suppress(StorageError), self.ledger.during("checkpoint_blocking"):
                self.commits.flush()

    def note_epoch(self, fact: EpochDone) -> None:
        result = EpochResult(**vars(fact), ended=datetime.now(UTC))
        self.commits.history.append(result)
        self.reader.event(events.EPOCH_FINISHED, **vars(fact), **numerics.gpu_memory())

    def tell_step(self, done: events.StepDone, state: PhaseState) -> None:
        if done.is_first:
            self.reader.event(events.STEP_COMPILED, phase=done.phase, seconds=done.seconds, **numerics.gpu_memory())
        self.reader.step(done, state.totals.means)

    def evaluate(self, exported: keras.Model, classifier: Classifier, splits: Splits) -> Results:
        """Metrics of the exported model over the test split, and what can be shown of single images."""
        self.record.update(state="evaluate")
        with self.progress.entering("evaluate", "evaluate"):
            results = measure(
                exported,
                classifier,
                splits,
                batch_size=evaluation_batch_size(self.settings, self.arithmetic["precision"]),
                seed=self.settings.seed,
            )
        test = results.test
        self.reader.event(events.EVALUATED, accuracy=test.accuracy, loss=test.loss, num_examples=test.num_examples)
        return results

    def export(self, exported: keras.Model, splits: Splits, results: Results) -> dict[str, StoredFile]:
        """Write model, logs and report, and return their digests; a later attempt writes them again, the same."""
        artefacts = Artefacts(self.store, self.record, names=export.NAMES)
        self.record.update(state="export")
        with self.progress.entering("export", "export"):
            self.write(artefacts, export.model_files(exported, splits.class_names, self.scratch))
            self.write(artefacts, export.log_files(self.commits.history, self.scratch))
            content = self.compose_report(splits, results)
            self.write(artefacts, export.report_files(content, results.gallery, self.scratch))
        self.reader.event(events.EXPORTED, model=f"{self.store.uri}/{export.MODEL}")
        return artefacts.files

    def write(self, artefacts: Artefacts, files: Iterable[tuple[str, Path]]) -> None:
        """Put files where readers expect them as they are made; a stop is honoured before each."""
        for name, path in files:
            self.check_stop()
            artefacts.write(name, path)

    def compose_report(self, splits: Splits, results: Results) -> dict[str, Any]:
        attempts = self.ledger.of_run()
        return compose(
            self.record.content,
            self.settings,
            outcome=results.outcome,
            test=results.test.as_json(),
            class_counts=splits.composition.as_json(),
            duplicates=splits.composition.duplicates,
            examples=results.gallery.examples,
            layers=results.layers,
            history=self.commits.history,
            durations_seconds=by_stage(attempts),
            time_seconds=by_category(attempts),
            goodput_ratio=goodput(attempts),
            device=numerics.device_name(),
        )

    def finish(self, outcome: dict[str, Any], files: dict[str, StoredFile]) -> None:
        exit_code = getattr(missed_gate(outcome, self.settings.min_test_accuracy), "exit_code", ExitCode.COMPLETE)
        self.checkpoints.prune()
        self.record.finish(outcome, exit_code=exit_code, files=files)
        self.reader.event(events.RUN_FINISHED, at=self.store.uri, **outcome)
