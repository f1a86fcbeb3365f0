"""The page: `report/index.html`, one file that needs no other, no network and no script."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from job.observe.ledger import Category
from job.phases import TITLES
from job.report import plots
from job.report.pictures import data_uri
from job.report.rendering import percent, render
from job.settings.settings import changes_result, group_of, variable

MAX_MATRIX_CLASSES = 20
"""A confusion matrix of more classes is not read; its largest entries are."""

MAX_CLASS_ROWS = 20
MAX_CONFUSIONS = 8
MIN_SECONDS = 0.005

TIME_MEANINGS: Mapping[Category, str] = {
    "productive": "training steps, done for the first time",
    "init": "starting: Python, TensorFlow, reading the record, building the model",
    "download": "fetching data and weights",
    "cache": "decoding the images",
    "compile": "compiling the train steps",
    "data_wait": "waiting for the next batch",
    "checkpoint_blocking": "copying the state for a commit, while training waits",
    "restore": "reading a checkpoint back",
    "recompute": "repeating steps that an earlier attempt had done and lost",
    "validate": "validation after each epoch",
    "evaluate": "the test split",
    "export": "model, report and their upload",
    "idle": "waiting for something else",
}


def page(
    content: Mapping[str, Any], *, training: np.ndarray, augmented: np.ndarray, right: np.ndarray, wrong: np.ndarray
) -> str:
    """The page of a report's content and its pictures, uint8 [n, s, s, 3].

    `training`, `right` and `wrong` are those of `training_sample` and `most_confident`, in order; `augmented` are
    variants of the first of `training`, [n, variants, s, s, 3].
    """
    surest = content["most_confident"]
    return render(
        "report.html",
        report=content,
        num_correct=sum(row["num_correct"] for row in content["test"]["per_class"]),
        classes=[row["name"] for row in content["test"]["per_class"]],
        class_rows=_class_rows(content["class_counts"]),
        shared=_shared(content["duplicates"]),
        speeds=_images_per_second(content["history"]),
        total_seconds=sum(content["time_seconds"].values()),
        training=_with_pictures(content["training_sample"], training),
        augmented=[
            {**example, "picture": data_uri(image), "variants": [data_uri(variant) for variant in variants]}
            for example, image, variants in zip(content["training_sample"], training, augmented, strict=False)
        ],
        right=_with_pictures(surest["right"], right),
        wrong=_with_pictures(surest["wrong"], wrong),
        plots=_plots(content),
        matrix=_matrix(content["test"]["confusion"]),
        confusions=_confusions(content["test"]),
        times=_times(content["time_seconds"]),
        parts=_parts(content["layers"]),
        phase_titles=TITLES,
        setting_groups=_setting_groups(content["settings"]),
    )


def _with_pictures(examples: Sequence[Mapping[str, Any]], pictures: np.ndarray) -> list[dict[str, Any]]:
    return [{**example, "picture": data_uri(pixels)} for example, pixels in zip(examples, pictures, strict=True)]


def _class_rows(counts: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """Classes with their examples in each split, at most so many as are read."""
    names = list(next(iter(counts.values())))[:MAX_CLASS_ROWS]
    return [{"name": name, "counts": [of_split[name] for of_split in counts.values()]} for name in names]


def _shared(duplicates: Mapping[str, int]) -> list[dict[str, Any]]:
    """The pairs of splits that have images in common."""
    pairs = [(*name.split("_"), count) for name, count in duplicates.items() if count]
    return [{"first": first, "second": second, "count": count} for first, second, count in pairs]


def _images_per_second(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median over the epochs of each phase."""
    return {
        phase: statistics.median(epoch["images_per_second"] for epoch in epochs)
        for phase, epochs in itertools.groupby(history, key=lambda epoch: str(epoch["phase"]))
    }


def _plots(content: Mapping[str, Any]) -> dict[str, Markup]:
    """By name; the values are markup that this program has made."""
    history, test = content["history"], content["test"]

    def from_to(quantity: str, show: Any) -> str:
        train, validation = ([epoch[f"{split}_{quantity}"] for epoch in history] for split in ("train", "validation"))
        return (
            f"training from {show(train[0])} to {show(train[-1])}, "
            f"validation from {show(validation[0])} to {show(validation[-1])}"
        )

    error = percent(test["calibration"]["expected_calibration_error"])
    return {
        "loss": Markup(
            plots.learning_curve(
                history, "loss", description=f"Loss after each epoch: {from_to('loss', '{:.3f}'.format)}."
            )
        ),
        "accuracy": Markup(
            plots.learning_curve(
                history, "accuracy", description=f"Accuracy after each epoch: {from_to('accuracy', percent)}."
            )
        ),
        "reliability": Markup(
            plots.reliability_diagram(
                test["calibration"],
                num_classes=len(test["per_class"]),
                description=f"Reliability diagram: expected calibration error {error}.",
            )
        ),
    }


def _matrix(confusion: Sequence[Sequence[int]]) -> list[list[dict[str, Any]]] | None:
    """Cells with their count and its share of the row; None for more classes than can be read."""
    if len(confusion) > MAX_MATRIX_CLASSES:
        return None
    return [[{"count": count, "share": count / max(sum(row), 1)} for count in row] for row in confusion]


def _confusions(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was most often taken for what."""
    names = [row["name"] for row in test["per_class"]]
    pairs = [
        {"label": names[i], "predicted": names[j], "count": count, "share": count / sum(row)}
        for i, row in enumerate(test["confusion"])
        for j, count in enumerate(row)
        if i != j and count > 0
    ]
    return sorted(pairs, key=lambda pair: -pair["count"])[:MAX_CONFUSIONS]


def _times(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """The longest first, without what took no time to speak of."""
    whole = sum(seconds.values())
    rows = [
        {"name": name, "meaning": TIME_MEANINGS.get(name, ""), "seconds": value, "share": value / whole}  # type: ignore[call-overload]
        for name, value in seconds.items()
        if value >= MIN_SECONDS
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def _parts(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Layers and parameters of each part of the model."""
    rows = []
    for part, of_part in itertools.groupby(layers, key=lambda layer: str(layer["part"])):
        inside = list(of_part)
        rows.append(
            {
                "name": part,
                "num_layers": len(inside),
                "output_shape": inside[-1]["output_shape"],
                "num_parameters": sum(layer["num_parameters"] for layer in inside),
                "num_trainable": sum(layer["num_trainable"] for layer in inside),
            }
        )
    return rows


def _setting_groups(settings: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Settings as their variables, in the groups of the help."""
    rows = [
        {"group": group_of(field), "variable": variable(field), "value": value, "changes_result": changes_result(field)}
        for field, value in settings.items()
    ]
    order = list(dict.fromkeys(row["group"] for row in rows))
    return [(group, [row for row in rows if row["group"] == group]) for group in order]
