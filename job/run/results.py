"""The final evaluation: metrics of the exported model over the test split, and examples of images for the report."""

import keras

from job.data.splits import Splits
from job.model.classifier import Classifier
from job.report.content import Results
from job.report.gallery import gather
from job.train.evaluation import evaluate, predict_logits
from job.train.loop import check_finite


def measure(exported: keras.Model, classifier: Classifier, splits: Splits, *, batch_size: int, seed: int) -> Results:
    """Measure the exported model, which has the weights of the classifier, once every image is known to be good.

    `batch_size` images are taken at a time. Raises TrainingDiverged when the loss is not finite, DataCorrupt when an
    image of any split is damaged.
    """
    splits.wait()
    logits, labels = predict_logits(exported, splits.test, batch_size=batch_size)
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
        layers=classifier.structure(),
    )
