"""The final evaluation: metrics of the exported model over the test split, and examples of images for the report."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from job.data.splits import Split, Splits
from job.model.answers import DEFAULT_TEMPERATURE, DEFAULT_THRESHOLD, predicted_classes
from job.model.classifier import Classifier, layer_row
from job.phases import Phase
from job.report import predictions
from job.report.content import Results
from job.report.gallery import gather, names_of_test
from job.train.calibration import cross_entropy, fit_temperature, fit_threshold
from job.train.collective import Collective
from job.train.evaluation import evaluate, forward_of, predict_logits, probabilities, temperature_scaling, thresholds
from job.train.loop import check_finite


@dataclass(frozen=True, kw_only=True)
class Logits:
    """Of the exported model: float64 [n, 1 or k] over each of two splits."""

    validation: np.ndarray
    test: np.ndarray


def predict(exported: keras.Model, splits: Splits, collective: Collective, *, batch_size: int, at_once: int) -> Logits:
    """The logits of the exported model, once every image is known to be good.

    Of validation the workers share batches of `batch_size`, as in training, and of test those of `at_once`, which is
    how many images are taken at a time. Raises DataCorrupt when an image of any split is damaged.
    """
    splits.wait()
    forward = forward_of(exported, at_once=at_once)

    def over(split: Split, batch_size: int) -> np.ndarray:
        num_logits = exported.output_shape[-1]
        return predict_logits(forward, split, collective, num_logits=num_logits, batch_size=batch_size, at_once=at_once)

    return Logits(validation=over(splits.validation, batch_size), test=over(splits.test, at_once))


def measure(
    logits: Logits,
    classifier: Classifier,
    splits: Splits,
    *,
    exported: keras.Model,
    calibrate: bool,
    threshold: str,
    phases: Sequence[Phase],
    seed: int,
) -> Results:
    """The results of a classifier and its exported model, which give these logits.

    `calibrate` and `threshold` are those of the settings. Temperature and threshold are fitted on the validation split;
    nothing of the test split decides anything. Raises TrainingDiverged when a loss is not finite.
    """
    labels, validation_labels = (split.labels.astype(np.int64) for split in (splits.test, splits.validation))
    check_finite(cross_entropy(logits.test, labels), "over the test split")
    check_finite(cross_entropy(logits.validation, validation_labels), "over the validation split")
    fitted = fit_temperature(logits.validation, validation_labels)
    temperature = fitted if calibrate and fitted is not None else DEFAULT_TEMPERATURE
    of_validation, of_test = logits.validation / temperature, logits.test / temperature
    used, best = DEFAULT_THRESHOLD, None
    if len(splits.class_names) == 2:
        best = fit_threshold(of_validation, validation_labels)
        used = best if threshold == "auto" else float(threshold)
    layers = classifier.structure()
    if temperature != DEFAULT_TEMPERATURE:
        layers.append(layer_row("head", "temperature", "Rescaling", exported.output_shape[1:]))
    names = names_of_test(splits)
    test = evaluate(of_test, labels, splits.class_names, threshold=used)
    return Results(
        outcome={
            "test_accuracy": test.accuracy,
            "test_accuracy_interval": test.accuracy_interval,
            "test_balanced_accuracy": test.balanced_accuracy,
            "test_loss": test.loss,
            "model_sha256": classifier.digest(),
        },
        test=test,
        temperature=temperature,
        threshold=used,
        temperature_scaling=temperature_scaling(logits.test, labels, fitted=fitted, is_used=calibrate),
        thresholds=None if best is None else thresholds(of_test, labels, used=used, best=best),
        gallery=gather(classifier, splits, exported=exported, logits=of_test, names=names, threshold=used, seed=seed),
        predictions=predictions.written(
            probabilities(of_test),
            predicted_classes(of_test, used),
            labels,
            splits.class_names,
            names=names,
        ),
        layers=layers,
        num_trainable={phase.name: classifier.num_trainable(phase.unfreeze) for phase in phases},
    )
