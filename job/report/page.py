"""The page: `report/index.html`, one file that needs no other, no network and no script."""

import itertools
import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from markupsafe import Markup

from job.observe.ledger import Category
from job.report import plots
from job.report.gallery import Gallery
from job.report.overlay import color_scale, overlay
from job.report.pictures import data_uri
from job.report.rendering import percent, render
from job.settings.fields import variable
from job.settings.settings import Settings, changes_result, group_of

MAX_MATRIX_CLASSES = 20
"""Of more classes only the largest entries of the confusion matrix are shown."""

MAX_CLASS_ROWS = 20
MAX_CONFUSIONS = 8
"""Beside a matrix; without one, `MAX_MATRIX_CLASSES`."""

MAX_WHOLE_CLASSES = 60
"""Of more classes the page begins with those of the lowest and highest F1, `NUM_EXTREMES` of each."""

NUM_EXTREMES = 20
MIN_SECONDS = 0.005

AGAIN = "-again"
MAX_RUN_ID = 128 - len(AGAIN)

TIME_MEANINGS: Mapping[Category | str, str] = {
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
    "evaluate": "the final evaluation, over validation and test",
    "export": "model, report and their upload",
    "idle": "waiting for something else",
}


def page(content: Mapping[str, Any], gallery: Gallery) -> str:
    """The page of a report's content, with the pictures of its examples."""
    test, surest = content["test"], content["most_confident"]
    classes = [row["name"] for row in test["per_class"]]
    training = _with_pictures(content["training_sample"], gallery.training)
    return render(
        "report.html",
        report=content,
        num_correct=sum(row["num_correct"] for row in test["per_class"]),
        classes=classes,
        extremes=_extremes(test["per_class"]),
        class_rows=_class_rows(content["class_counts"]),
        shared=[(*pair.split("_"), count) for pair, count in content["duplicates"].items() if count],
        speeds=_images_per_second(content["history"]),
        total_seconds=sum(content["time_seconds"].values()),
        curves=_curves(test),
        scale_colors=color_scale(),
        training=training,
        augmented=[
            {**example, "variants": [data_uri(variant) for variant in variants]}
            for example, variants in zip(training, gallery.augmented, strict=False)
        ],
        right=_explained(_with_pictures(surest["right"], gallery.right), gallery.right, gallery.right_maps),
        wrong=_explained(_with_pictures(surest["wrong"], gallery.wrong), gallery.wrong, gallery.wrong_maps),
        plots={name: Markup(svg) for name, svg in _plots(content).items()},
        matrix=_matrix(test["confusion"]),
        confusions=_confusions(test["confusion"], classes),
        times=_times(content["time_seconds"]),
        parts=_parts(content["layers"]),
        setting_groups=_setting_groups(content["settings"]),
        again=_again(content["run_id"], content["settings"]),
    )


def _with_pictures(examples: Sequence[Mapping[str, Any]], pictures: np.ndarray) -> list[dict[str, Any]]:
    return [{**example, "picture": data_uri(pixels)} for example, pixels in zip(examples, pictures, strict=True)]


def _explained(examples: list[dict[str, Any]], pictures: np.ndarray, maps: np.ndarray) -> list[dict[str, Any]]:
    """The examples, the first of them with what their activation maps show."""
    drawn = (data_uri(overlay(pixels, heat)) for pixels, heat in zip(pictures, maps, strict=False))
    return [{**example, "overlay": uri} for example, uri in itertools.zip_longest(examples, drawn)]


def _curves(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The precision-recall curves with their plots, and the rows of their classes."""
    rows = {row["name"]: row for row in test["per_class"]}
    found = []
    for number, curve in enumerate(test["precision_recall"]):
        row = rows[curve["class"]]
        description = f"Precision-recall curve of {row['name']}: average precision {row['average_precision']:.4f}."
        name = f"precision-recall-{number}"
        plot = plots.precision_recall_curve(curve, name=name, marked=row, description=description)
        found.append({**row, "plot": Markup(plot)})
    return found


def _class_rows(counts: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """The first classes, with their examples in each split."""
    names = list(next(iter(counts.values())))[:MAX_CLASS_ROWS]
    return [{"name": name, "counts": [of_split[name] for of_split in counts.values()]} for name in names]


def _extremes(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Of many classes the rows of the lowest and of the highest F1, by what to call them; nothing of few.

    A class without test images that is never predicted has no F1.
    """
    if len(rows) <= MAX_WHOLE_CLASSES:
        return {}
    ordered = sorted((row for row in rows if row["f1"] is not None), key=itemgetter("f1"))
    return {"lowest": ordered[:NUM_EXTREMES], "highest": ordered[: -NUM_EXTREMES - 1 : -1]}


def _images_per_second(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median over the epochs of each phase."""
    return {
        phase: statistics.median(epoch["images_per_second"] for epoch in epochs)
        for phase, epochs in itertools.groupby(history, key=lambda epoch: str(epoch["phase"]))
    }


def _plots(content: Mapping[str, Any]) -> dict[str, str]:
    history, test = content["history"], content["test"]

    def curve(quantity: str, show: Any) -> str:
        first, last = history[0], history[-1]
        changes = [
            f"{label} from {show(first[f'{split}_{quantity}'])} to {show(last[f'{split}_{quantity}'])}"
            for split, label in plots.LABELS.items()
        ]
        description = f"{quantity.capitalize()} after each epoch: {', '.join(changes)}."
        return plots.learning_curve(history, quantity, description=description)

    scaling = content["temperature_scaling"]
    error = percent(test["calibration"]["expected_calibration_error"])
    drawn = {
        "loss": curve("loss", "{:.3f}".format),
        "accuracy": curve("accuracy", percent),
        "reliability": plots.reliability_diagram(
            test["calibration"],
            num_classes=len(test["per_class"]),
            description=f"Reliability diagram: expected calibration error {error}.",
        ),
    }
    if scaling["is_fitted"] and not scaling["is_used"]:
        error = percent(scaling["after"]["expected_calibration_error"])
        drawn["scaled"] = plots.reliability_diagram(
            scaling["after"],
            name="scaled",
            num_classes=len(test["per_class"]),
            description=f"Reliability diagram after temperature scaling: expected calibration error {error}.",
        )
    return drawn


def _matrix(confusion: Sequence[Sequence[int]]) -> list[list[dict[str, Any]]] | None:
    """Cells with their count and its share of the row; None for more classes than can be read."""
    if len(confusion) > MAX_MATRIX_CLASSES:
        return None
    return [[{"count": count, "share": count / max(sum(row), 1)} for count in row] for row in confusion]


def _confusions(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent mistakes."""
    pairs = [
        {"label": classes[i], "predicted": classes[j], "count": count, "share": count / sum(row)}
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count > 0
    ]
    most = MAX_CONFUSIONS if len(classes) <= MAX_MATRIX_CLASSES else MAX_MATRIX_CLASSES
    return sorted(pairs, key=itemgetter("count"), reverse=True)[:most]


def _times(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """The longest first, without those that would be shown as zero."""
    whole = sum(seconds.values())
    return [
        {"name": name, "meaning": TIME_MEANINGS.get(name, ""), "seconds": value, "share": value / whole}
        for name, value in sorted(seconds.items(), key=itemgetter(1), reverse=True)
        if value >= MIN_SECONDS
    ]


def _parts(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Layers and parameters of each part of the model."""
    parts = [list(of_part) for _, of_part in itertools.groupby(layers, key=lambda layer: str(layer["part"]))]
    return [
        {
            "name": part[0]["part"],
            "num_layers": len(part),
            "output_shape": part[-1]["output_shape"],
            "num_parameters": sum(layer["num_parameters"] for layer in part),
            "num_trainable": sum(layer["num_trainable"] for layer in part),
        }
        for part in parts
    ]


def _setting_groups(settings: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Settings as their variables, in the groups of the help."""
    groups: dict[str, list[dict[str, Any]]] = {}
    defaults = Settings().shown()
    for field, value in settings.items():
        row = {
            "variable": variable(field), "value": value, "default": defaults[field],
            "changes_result": changes_result(field),
        }  # fmt: skip
        groups.setdefault(group_of(field), []).append(row)
    return groups


def _again(run_id: str, settings: Mapping[str, Any]) -> list[str]:
    """The lines of a shell command that trains the same again: what differs from the defaults and decides the result.

    In a run of another name, because a finished run does nothing.
    """
    defaults = Settings().shown()
    fields = [field for field in settings if changes_result(field) or field == "data_dir"]
    chosen = {variable(field): settings[field] for field in fields if settings[field] != defaults[field]}
    chosen[variable("run_id")] = f"{run_id[:MAX_RUN_ID]}{AGAIN}"
    # JSON writes a number so that it reads back the same, and true as a variable has it.
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in chosen.items()}
    return [*(f"{name}={shlex.quote(text)} \\" for name, text in texts.items()), "thaw"]
