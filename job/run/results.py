"""The final evaluation: metrics of the exported model over the test split, and examples of images for the report."""

import keras
import numpy as np

from job.data.splits import Splits
from job.model.classifier import Classifier
from job.report import predictions
from job.report.content import Results
from job.report.gallery import gather, names_of_test
from job.train.collective import Collective
from job.train.evaluation import evaluate, predict_logits, predicted_classes, probabilities
from job.train.loop import check_finite


def predict(exported: keras.Model, splits: Splits, collective: Collective, *, batch_size: int) -> np.ndarray:
    """Logits float64 [n, 1 or k] of the exported model over the test split, once every image is known to be good.

    `batch_size` images are taken at a time. Raises DataCorrupt when an image of any split is damaged.
    """
    splits.wait()
    return predict_logits(exported, splits.test, collective, batch_size=batch_size)


def measure(logits: np.ndarray, classifier: Classifier, splits: Splits, *, seed: int) -> Results:
    """The results of a classifier that gives these logits, as `predict` does.

    Raises TrainingDiverged when the loss is not finite.
    """
    labels = splits.test.labels.astype(np.int64)
    test = evaluate(logits, labels, splits.class_names)
    check_finite(test.loss, "over the test split")
    return Results(
        outcome={
            "test_accuracy": test.accuracy,
            "test_accuracy_interval": test.accuracy_interval,
            "test_loss": test.loss,
            "model_sha256": classifier.digest(),
        },
        test=test,
        gallery=gather(classifier, splits, logits=logits, labels=labels, seed=seed),
        predictions=predictions.written(
            probabilities(logits), predicted_classes(logits), labels, splits.class_names, names=names_of_test(splits)
        ),
        layers=classifier.structure(),
    )
