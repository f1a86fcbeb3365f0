"""The straight line of a run: load, build, restore, train each phase with commits, evaluate, export, finish.

The modules of `job.run` use the store, the record and the observers; those that compute take and return values.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from job.data.files.names import is_place
from job.data.input_store import open_input
from job.data.mirror import Fetcher, LocalInputs
from job.data.order import Portion, epoch_order, num_batches
from job.data.splits import DataRequest, Splits, load_splits
from job.data.tfds.builders import prepared_builder
from job.errors import ExitCode
from job.model.answers import calibrated, same_classes
from job.model.classifier import Classifier, ModelRequest, build_classifier
from job.observe import events
from job.observe.progress import Context
from job.report import export
from job.report.content import Results, compose
from job.report.files import MODEL
from job.report.gate import missed_gate
from job.run import disk_space
from job.run import inputs as run_inputs
from job.run.artefacts import Artefacts
from job.run.checkpoint import Checkpoints
from job.run.committer import Committer
from job.run.curves import Curves
from job.run.finished import begun_with, naming, trained_on
from job.run.finished_model import FinishedModel, read_model
from job.run.following import FollowedCheckpoints, FollowedRecord, NoCommits
from job.run.record import RunRecord
from job.run.results import Logits, measure, predict
from job.run.training import Training
from job.schema import Record, StoredFile
from job.settings.resources import estimate, evaluation_batch_size
from job.settings.settings import Settings
from job.storage import ObjectStore, scratch
from job.train import device, fixed_shapes, numerics
from job.train.collective import Collective
from job.train.loss import class_weights, weights_summary
from job.train.step import Recipe


@dataclass
class Pipeline:
    """Does what is left of a claimed run; its fields are what the stages share. `folder` is for temporary files.

    A worker that follows does the same with a record that it cannot write, and commits that do nothing.
    """

    settings: Settings
    store: ObjectStore
    record: RunRecord
    context: Context
    collective: Collective
    folder: Path

    def __post_init__(self) -> None:
        settings, store, record, context = self.settings, self.store, self.record, self.context
        self.observer, self.progress, self.check_stop = context.observer, context.progress, context.check_stop
        self.ledger = context.progress.ledger
        self.team = self.collective.team
        self.phases = settings.training_phases()
        self.earlier: tuple[ObjectStore, Record] | None = None  # the finished run with which this one begins
        self.committer: Committer | NoCommits
        if isinstance(record, FollowedRecord):
            self.checkpoints: Checkpoints = FollowedCheckpoints(store, record, self.team, folder=self.folder)
            self.committer = NoCommits()
            self.arithmetic = record.arithmetic()
        else:
            self.checkpoints = Checkpoints(store, record, keep=settings.keep_checkpoints, folder=self.folder)
            self.committer = Committer(self.checkpoints, context, Curves(store, record, self.folder))
            # `auto` is decided once for a run: later attempts may be on other processors.
            self.arithmetic = record.content.inputs.get("arithmetic") or numerics.choose(
                precision=settings.precision, xla=settings.xla
            )
            self.team.tell("arithmetic", self.arithmetic)
        self.evaluation_batch_size = evaluation_batch_size(settings, self.arithmetic["precision"])

    def run(self) -> None:
        """The straight line; afterwards the outcome is in the record."""
        numerics.prepare_process(deterministic=self.settings.deterministic, xla=self.arithmetic["xla"])
        with self.collective.explained():
            inputs = self.fetch()
            with self.load_data(inputs) as splits:
                self.check_data(splits)
                classifier = self.build_model(inputs.weights, splits)
                training = self.training()
                training.restore()
                with self.committer:
                    for phase in training.phases_left():
                        training.train(phase, classifier, splits, self.recipe(splits))
                exported = classifier.export()
                logits = self.predict(exported, splits)
                if isinstance(self.record, FollowedRecord):
                    self.record.wait_for_outcome()
                    return
                results = self.evaluate(logits, exported, classifier, splits)
            files = self.export(exported, splits, results)
            self.finish(results.outcome, files)

    def fetch(self) -> LocalInputs:
        """The local places of data and weights; what is missing is fetched or downloaded first."""
        settings = self.settings

        def check_space(num_bytes: int) -> None:
            disk_space.check(settings, None, to_fetch=num_bytes)

        def check_space_of_tfds(folder: Path, num_bytes: int) -> None:
            # On another volume TFDS itself compares.
            if disk_space.is_with_the_cache(settings, folder):
                check_space(num_bytes)

        fetcher = Fetcher(
            settings.cache_dir,
            scratch=self.folder,
            observer=self.observer,
            check_stop=self.check_stop,
            check_space=check_space,
        )
        # Workers of one machine share the folders: the first fetches, and the others find it done.
        is_shared = self.collective.share.num_workers > 1
        turn = scratch.turn(settings.cache_dir, tick=self.check_stop) if is_shared else contextlib.nullcontext()
        weights = settings.weights
        if settings.begins_with_run():
            store = open_input(weights, observer=self.observer, check_stop=self.check_stop)
            # Now, and not after the data was read; the model is fetched when it is needed.
            self.earlier, weights = (store, begun_with(settings, store)), "none"
        with self.progress.entering("fetch", "download"), turn:
            inputs = fetcher.inputs(dataset=settings.dataset, data_dir=settings.data_dir, weights=weights)
            if not is_place(settings.dataset):
                prepared_builder(settings.dataset, inputs.data_dir, check_space=check_space_of_tfds)
            return inputs

    def check_space_of_examples(self, num_examples: int) -> None:
        """Raise DiskTooSmall when what this process keeps of so many examples, and writes in training, does not fit,
        and MemoryExhausted when it does not fit on the GPU where it is to be kept there.
        """
        need = estimate(self.settings, num_examples=num_examples, precision=self.arithmetic["precision"])
        disk_space.check(self.settings, need)
        disk_space.check_device(self.settings, need)

    def load_data(self, inputs: LocalInputs) -> Splits:
        """The data, whose images are decoded in the background from now on, until it is closed."""
        settings = self.settings
        with self.progress.entering("data", "cache"):
            request = DataRequest(
                dataset=inputs.dataset,
                data_dir=inputs.data_dir,
                specs=settings.specs(),
                resizing=settings.resizing(),
                cache=settings.cache,
                cache_dir=self.folder,
                files=settings.files_request(),
                on_unreadable=settings.on_unreadable,
                check_space=self.check_space_of_examples,
                portion=Portion(
                    share=self.collective.share,
                    batch_size=settings.batch_size,
                    evaluation_batch_size=self.evaluation_batch_size,
                    seed=settings.seed,
                ),
            )
            return load_splits(request, check_stop=self.check_stop, first_order=self.first_order)

    def check_data(self, splits: Splits) -> None:
        """Raise InvalidSettings when a setting does not fit the data, InputError when the run began with other data."""
        settings = self.settings
        with self.progress.entering("data", "cache"):
            settings.check_classes(splits.class_names)
            run_inputs.compare_data(splits, self.record, self.store)
        steps = num_batches(len(splits.train), settings.batch_size)
        self.observer.event(events.DataLoaded(
            dataset=splits.identity["dataset"], cache=settings.cache, **splits.identity["splits"],
            steps={phase.name: phase.epochs * steps for phase in self.phases},
            relative_costs={phase.name: phase.relative_cost for phase in self.phases},
            classes=splits.composition.summary(),
            class_weights=weights_summary(self.recipe(splits).class_weights, splits.class_names),
        ))  # fmt: skip
        for finding in splits.findings():
            self.observer.event(finding)
        if self.earlier:
            specs = {name: splits.specs[name] for name in ("validation", "test")}
            if seen := trained_on(*self.earlier, settings.dataset, specs, splits.table):
                self.observer.event(events.SeenBefore(settings.weights, seen))

    def first_order(self, num_examples: int) -> np.ndarray:
        """The order in which this attempt first uses the training images.

        It is another one if the newest checkpoint is damaged, or its phase has ended early.
        """
        settings, checkpoints = self.settings, self.record.content.checkpoints
        epochs = [(phase.name, epoch) for phase in self.phases for epoch in range(phase.epochs)]
        done = skip_batches = 0
        if checkpoints:
            newest = checkpoints[-1]
            done, skip_batches = divmod(newest.step, num_batches(num_examples, settings.batch_size))
            done += epochs.index((newest.phase, 0))
        if done >= len(epochs):
            return np.arange(num_examples)
        phase, epoch = epochs[done]
        order = epoch_order(num_examples, batch_size=settings.batch_size, seed=settings.seed, phase=phase, epoch=epoch)
        return np.roll(order, -skip_batches * settings.batch_size)

    def build_model(self, weights: str, splits: Splits) -> Classifier:
        """The classifier with its pre-trained weights. Raises InputError when the run began with others."""
        settings = self.settings
        earlier = self.earlier_model(*self.earlier) if self.earlier else None
        # New weights are drawn from the process's one random generator, which a retry of a renewal would use too.
        alone = self.record.quiet() if weights == "none" else contextlib.nullcontext()
        with self.progress.entering("model", "init"), alone:
            request = ModelRequest(
                backbone=settings.backbone,
                weights=earlier.network if earlier else weights,
                image_size=settings.image_size,
                num_classes=len(splits.class_names),
                dropout=settings.dropout,
                augmentation=settings.augmentation(),
                policy=numerics.policy_of(self.arithmetic["precision"]),
                seed=settings.seed,
            )
            with naming(settings) if earlier else contextlib.nullcontext():
                classifier = build_classifier(request)
                if earlier:
                    self.take_head(classifier, earlier, splits.class_names)
            for phase in self.phases:
                classifier.first_trained(phase.unfreeze)  # Now, and not after hours.
            inputs = run_inputs.inputs_of(splits, classifier, self.arithmetic, self.record)
            if self.earlier:
                inputs |= run_inputs.first_model(self.earlier[1])
        self.observer.event(events.ModelBuilt(
            settings.backbone, settings.weights, **self.arithmetic, device=device.name()
        ))  # fmt: skip
        if not isinstance(self.record, FollowedRecord):
            run_inputs.keep_table(splits, inputs, self.store)
        self.record.pin_inputs(inputs)
        self.team.tell("inputs", inputs)
        return classifier

    def earlier_model(self, store: ObjectStore, record: Record) -> FinishedModel:
        """The verified model of the finished run with which this one begins. Raises InputError."""
        settings = self.settings
        with self.progress.entering("fetch", "download"), scratch.folder(settings.cache_dir) as folder:
            disk_space.check(settings, None, to_fetch=record.files[MODEL].size)
            with naming(settings):
                return read_model(store, record, folder)

    def take_head(self, classifier: Classifier, earlier: FinishedModel, class_names: Sequence[str]) -> None:
        """Begin with what the head of an earlier model knows of these classes."""
        known = same_classes(earlier.class_names, class_names)
        classifier.take_head(earlier.network, known)
        new = [name for name, index in zip(class_names, known, strict=True) if index < 0]
        self.observer.event(events.HeadTaken(self.settings.weights, len(class_names) - len(new), new))

    def training(self) -> Training:
        return Training(
            context=self.context,
            record=self.record,
            checkpoints=self.checkpoints,
            committer=self.committer,
            collective=self.collective,
            phases=self.phases,
            checkpoint_every_seconds=self.settings.checkpoint_every_seconds,
        )

    def recipe(self, splits: Splits) -> Recipe:
        settings = self.settings
        weights = class_weights(settings.class_weights, splits.composition.counts["train"])
        return Recipe(
            settings.batch_size,
            settings.seed,
            xla=self.arithmetic["xla"],
            class_weights=weights,
            label_smoothing=settings.label_smoothing,
            mixup=settings.mixup,
            cutmix=settings.cutmix,
            steps_per_execution=settings.steps_per_execution,
            microbatch_size=settings.microbatch_size,
            fixed_shapes=fixed_shapes.are_faster(xla=self.arithmetic["xla"]),
        )

    def predict(self, exported: keras.Model, splits: Splits) -> Logits:
        """Logits of the exported model over validation and test; afterwards the first worker needs no other."""
        self.record.update(state="evaluate")
        with self.progress.entering("evaluate", "evaluate"):
            batch_size, at_once = self.settings.batch_size, self.evaluation_batch_size
            logits = predict(exported, splits, self.collective, batch_size=batch_size, at_once=at_once)
        self.team.dismiss()
        return logits

    def evaluate(self, logits: Logits, exported: keras.Model, classifier: Classifier, splits: Splits) -> Results:
        """Metrics over the test split, and examples of images for the report."""
        with self.progress.entering("evaluate", "evaluate"):
            settings = self.settings
            results = measure(
                logits, classifier, splits, exported=exported, calibrate=settings.calibrate,
                threshold=settings.threshold, phases=self.phases, seed=settings.seed,
            )  # fmt: skip
        test = results.test
        self.observer.event(events.Evaluated(test.accuracy, test.balanced_accuracy, test.loss, test.num_examples))
        return results

    def export(self, exported: keras.Model, splits: Splits, results: Results) -> dict[str, StoredFile]:
        """Write model, logs and report, and return their digests; a later attempt writes the same files again."""
        artefacts = Artefacts(self.store, self.record, names=export.NAMES)
        self.record.update(state="export")
        with self.progress.entering("export", "export"):
            model = calibrated(exported, results.temperature)
            model_files = export.model_files(
                model, splits.class_names, self.folder, threshold=results.threshold, resize=self.settings.resize
            )
            self.write(artefacts, model_files)
            self.write(artefacts, export.log_files(self.record.content.history, self.folder))
            content = compose(
                self.record.content,
                self.settings,
                results,
                composition=splits.composition,
                times=self.ledger.of_run(),
                device=device.name(),
            )
            self.write(artefacts, export.report_files(content, results, self.folder))
        self.observer.event(events.Exported(model=f"{self.store.uri}/{MODEL}"))
        return artefacts.files

    def write(self, artefacts: Artefacts, files: Iterable[tuple[str, Path]]) -> None:
        """Upload files as they are made; a stop is honoured before each."""
        for name, path in files:
            self.check_stop()
            artefacts.write(name, path)

    def finish(self, outcome: dict[str, Any], files: dict[str, StoredFile]) -> None:
        exit_code = getattr(missed_gate(outcome, self.settings.gates()), "exit_code", ExitCode.COMPLETE)
        self.checkpoints.prune()
        self.record.finish(outcome, exit_code=exit_code, files=files)
        self.team.tell("outcome", outcome)
        self.observer.event(events.RunFinished(self.store.uri, **outcome))
