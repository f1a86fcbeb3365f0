"""What is measured on: photographs and ImageNet weights where THAW_TEST_DATA has them, else drawn and random ones."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measuring import JOB, Finished, finished

BATCH_SIZE = 32


@dataclass(frozen=True)
class Workload:
    """A prepared data set, weights, a folder for the runs that are measured, and more `settings` of all of them."""

    is_real: bool
    dataset: str
    data_dir: Path
    weights: str
    image_size: int
    place: Path
    settings: dict[str, object] = field(default_factory=dict)

    def splits(self, train: int, validation: int, test: int) -> tuple[str, str, str]:
        """Three parts of the data set without a common example, of these sizes."""
        ends = train, train + validation, train + validation + test
        return f"train[:{ends[0]}]", f"train[{ends[0]}:{ends[1]}]", f"train[{ends[1]}:{ends[2]}]"

    def environment(self, run_id: str, splits: tuple[str, str, str], **settings: object) -> dict[str, str]:
        """The environment of a run of Xception on this data, with the recipe's defaults; no other THAW_*."""
        train, validation, test = splits
        values: dict[str, object] = {
            "RUN_ID": run_id, "STORAGE_URI": self.place / "runs", "DATASET": self.dataset, "DATA_DIR": self.data_dir,
            "WEIGHTS": self.weights, "IMAGE_SIZE": self.image_size, "TRAIN_SPLIT": train,
            "VALIDATION_SPLIT": validation, "TEST_SPLIT": test, "LOG_FORMAT": "json",
        }  # fmt: skip
        # What `import bench` has set is the job's choice, and not the article's.
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("THAW_", "TF_ENABLE_"))}
        return clean | {f"THAW_{name}": str(value) for name, value in (values | self.settings | settings).items()}

    def run(self, run_id: str, splits: tuple[str, str, str], **settings: object) -> tuple[Finished, dict[str, Any]]:
        """The process of such a run, which has ended, and its record."""
        process = finished(JOB, self.environment(run_id, splits, **settings))
        return process, json.loads((self.place / "runs" / run_id / "run.json").read_text())

    def mobilenet_settings(self) -> dict[str, object]:
        """Those of a run with a small network, in place of Xception."""
        weights = Path(self.weights).parent / "mobilenet_v2_1.0_224_imagenet_notop.h5" if self.is_real else "none"
        return {"BACKBONE": "MobileNetV2", "WEIGHTS": weights}


def workload(place: Path) -> Workload:
    """The workload of this machine. Drawing the pictures, where it must be, happens here."""
    photographs = os.environ.get("THAW_TEST_DATA")
    if photographs:
        root = Path(photographs).resolve()
        return Workload(
            is_real=True, dataset="cats_vs_dogs", data_dir=root / "tfds",
            weights=str(root / "weights" / "xception_imagenet_notop.h5"), image_size=150, place=place,
        )  # fmt: skip
    drawn = Workload(
        is_real=False, dataset="drawn_cats_vs_dogs", data_dir=place / "data", weights="none", image_size=71, place=place
    )
    drawn.run("drawn", drawn.splits(32, 8, 8), BACKBONE="Tiny", HEAD_EPOCHS=1, FINE_TUNE_EPOCHS=0, METRICS_PORT=0)
    return drawn
