"""The model card: `model/README.md`, in the format of model hubs (YAML front matter, then Markdown).

It states no licence, and its metadata have no `license`: those of the data and of the pre-trained weights apply, and
neither is known here.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from job.data.files.names import is_place
from job.model.answers import DEFAULT_THRESHOLD
from job.report.rendering import render
from job.settings.fields import names_a_run


def card(content: Mapping[str, Any]) -> str:
    """The card of the model that a report's content describes."""
    thresholds = content["thresholds"]
    is_other = thresholds is not None and thresholds["used"] != DEFAULT_THRESHOLD
    return render(
        "model_card.md",
        report=content,
        front_matter=Markup(_front_matter(content)),
        classes=[row["name"] for row in content["test"]["per_class"]],
        threshold=thresholds["used"] if is_other else None,
        begins_with_run=names_a_run(content["settings"]["weights"]),
        num_parameters=sum(layer["num_parameters"] for layer in content["layers"]),
    )


def _front_matter(content: Mapping[str, Any]) -> str:
    """The card's metadata, each value as JSON, which is YAML too.

    A viewer that knows no front matter shows it as Markdown. Five characters are escaped, which JSON itself does not
    use, so that there no name becomes HTML, a link, an image or code.
    """
    settings, outcome = content["settings"], content["outcome"]
    is_own = is_place(settings["dataset"])
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {
            "type": "imagefolder" if is_own else settings["dataset"],
            "name": content["provenance"]["data"]["dataset"],
            "split": settings["test_split"],
        },
        "metrics": [
            {"type": kind, "name": f"Test {kind}", "value": outcome[f"test_{kind}"]} for kind in ("accuracy", "loss")
        ],
    }
    # The name in keras.applications: its weights have no id on a hub. Of other weights nothing is known.
    is_known = settings["weights"] == "imagenet"
    base = {"base_model": settings["backbone"], "base_model_relation": "finetune"} if is_known else {}
    values = {
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "keras", "tensorflow", "transfer-learning", settings["backbone"]],
        **base,
        # A place means nothing elsewhere.
        **({} if is_own else {"datasets": [settings["dataset"]]}),
        "metrics": ["accuracy"],
        "model-index": [{"name": content["run_id"], "results": [result]}],
    }
    text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items())
    return re.sub(r"[<(*`~]", lambda match: f"\\u{ord(match[0]):04x}", text)
