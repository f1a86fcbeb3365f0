"""What the splits are made of: how many examples of each class, which images twice, and the digest of it all.

Numbers alone: labels and digests come in, and this module knows neither files nor TensorFlow.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from job.errors import InputError
from job.observe import data_events, events
from job.wording import counted, some

MAX_CLASSES = 20
"""So many classes are listed one by one; of more, how many there are and the smallest and the largest."""

RARE_EXAMPLES = 10
"""A class with fewer training examples is worth a warning."""


@dataclass(frozen=True)
class Skipped:
    """An image of `split` that was left out: its name, why, and the SHA-256 of its bytes."""

    split: str
    name: str
    reason: str
    sha256: str


@dataclass(frozen=True)
class Composition:
    """`counts` are int64 [classes] by split: examples of each class.

    `duplicates` has for each pair of splits, as `train_test`, how many examples of the second have an image that is,
    byte for byte, in the first too. `skipped` are the images that cannot be decoded, where those are left out;
    `num_unused` own images are in no split.
    """

    class_names: tuple[str, ...]
    counts: Mapping[str, np.ndarray]
    duplicates: Mapping[str, int]
    skipped: tuple[Skipped, ...] = ()
    num_unused: int = 0

    @classmethod
    def of(
        cls,
        class_names: Sequence[str],
        labels: Mapping[str, np.ndarray],
        digests: Mapping[str, np.ndarray],
        skipped: tuple[Skipped, ...] = (),
        *,
        num_unused: int = 0,
    ) -> "Composition":
        """From the labels, int32 [n] by split, and the digests of the images, uint8 [n, 32] by split."""
        rows = {name: np.ascontiguousarray(found).view("V32").ravel() for name, found in digests.items()}
        return cls(
            tuple(class_names),
            {name: np.bincount(found, minlength=len(class_names)) for name, found in labels.items()},
            {
                f"{first}_{second}": int(np.isin(rows[second], rows[first]).sum())
                for first, second in itertools.combinations(rows, 2)
            },
            skipped,
            num_unused,
        )

    def as_json(self) -> dict[str, dict[str, int]]:
        """Examples by split and class name."""
        return {
            split: dict(zip(self.class_names, counts.tolist(), strict=True)) for split, counts in self.counts.items()
        }

    def summary(self) -> dict[str, dict[str, int]]:
        """Examples by split and class name for a line of the log; of many classes, their number and sizes."""
        if len(self.class_names) <= MAX_CLASSES:
            return self.as_json()
        return {
            split: {"num_classes": int((counts > 0).sum()), "fewest": int(counts.min()), "most": int(counts.max())}
            for split, counts in self.counts.items()
        }

    def check(self) -> None:
        """Raise InputError where a result would mean nothing.

        With one class alone, a constant answer is right; a class that train lacks is never predicted.
        """
        problems = []
        for split, counts in self.counts.items():
            if not counts.any():
                problems.append(f"{split} has no image that can be used")
            elif (counts > 0).sum() < 2:
                problems.append(f"{split} has one class only: {self._with_counts(counts > 0, counts)}")
            lacking = (counts > 0) & (self.counts["train"] == 0)
            if lacking.any():
                problems.append(f"{split} has classes that train lacks: {self._with_counts(lacking, counts)}")
        if problems:
            if self.skipped:
                reasons = counted(kinds(image.reason for image in self.skipped))
                problems.append(f"{len(self.skipped):,} images cannot be read, and were left out ({reasons})")
            problems += [f"{split} has {counted(of_split)}" for split, of_split in self.summary().items()]
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise InputError(
                f"the classes of the splits do not fit together; nothing was trained.\n{lines}",
                hint="own images: add images of these classes, or leave the classes out by THAW_CLASSES; TFDS data is "
                "probably sorted by class: shuffle it as it is prepared; or choose other splits",
            )

    def findings(self) -> Iterator[events.Event]:
        """What a person should look at."""
        train = self.counts["train"]
        for split, counts in self.counts.items():
            missing = counts == 0 if split == "train" else (counts == 0) & (train > 0)
            if missing.any():
                yield data_events.ClassMissing(split, **self._named(missing))
        rare = (train > 0) & (train < RARE_EXAMPLES)
        if rare.any():
            yield data_events.ClassRare(RARE_EXAMPLES, **self._named(rare))
        if any(self.duplicates.values()):
            found = self.duplicates
            yield data_events.Duplicates(found["train_validation"], found["train_test"], found["validation_test"])
        if self.skipped:
            names = [image.name for image in self.skipped[:MAX_CLASSES]]
            yield data_events.ImagesSkipped(len(self.skipped), kinds(image.reason for image in self.skipped), names)
        if self.num_unused:
            yield data_events.ImagesUnused(self.num_unused)

    def _named(self, chosen: np.ndarray) -> dict[str, Any]:
        indices = np.flatnonzero(chosen)
        return {"num_classes": len(indices), "classes": [self.class_names[index] for index in indices[:MAX_CLASSES]]}

    def _with_counts(self, chosen: np.ndarray, counts: np.ndarray) -> str:
        """The chosen classes, bool [classes], each with its count."""
        names = [f"{self.class_names[index]} ({counts[index]:,})" for index in np.flatnonzero(chosen)]
        return some(names, most=MAX_CLASSES, shown=str)


def kinds(reasons: Iterable[str]) -> dict[str, int]:
    """How many images there are of each kind, the most frequent first. A kind is a reason without its details."""
    return dict(Counter(re.split("[:,(]", reason)[0].strip() for reason in reasons).most_common())


def identity(
    dataset: str,
    class_names: Sequence[str],
    labels: Mapping[str, np.ndarray],
    digests: Mapping[str, np.ndarray],
    skipped: Sequence[Skipped] = (),
) -> dict[str, Any]:
    """What identifies the data of a run, as JSON: every label and every byte of every image, in order.

    The arguments are those of `Composition.of`. `split_sha256` says in which split data differs, `sha256` is over all
    of it.
    """
    parts: dict[str, Any] = {
        "dataset": dataset,
        "splits": {name: len(found) for name, found in labels.items()},
        "num_classes": len(class_names),
        "class_names_sha256": _sha256(json.dumps(list(class_names)).encode()),
        "split_sha256": {
            name: _sha256(np.hstack([found.astype("<i4").view(np.uint8).reshape(-1, 4), digests[name]]).tobytes())
            for name, found in labels.items()
        },
    }
    if skipped:
        parts["skipped_sha256"] = _sha256("".join(sorted(image.sha256 for image in skipped)).encode())
    return parts | {"sha256": _sha256(json.dumps(parts).encode())}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_same(
    recorded: Mapping[str, Any] | None,
    found: Mapping[str, Any],
    *,
    changes: Callable[[], Iterable[str]] = tuple,
) -> None:
    """Raise InputError when the data of a run, as `identity` gives it, is not what the run began with, if it has.

    `changes` looks up what happened to which examples, a line each, where that is known.
    """
    if recorded is None or recorded == found:
        return
    problems = [
        f"{name}: the run has {recorded.get(name)}, this attempt {found[name]}"
        for name in ("dataset", "num_classes")
        if recorded.get(name) != found[name]
    ]
    if not problems and recorded.get("class_names_sha256") != found["class_names_sha256"]:
        problems.append("class names: others, or in another order")
    sizes, digests = recorded.get("splits") or {}, recorded.get("split_sha256") or {}
    for split, size in found["splits"].items():
        if sizes.get(split) != size:
            problems.append(f"{split}: the run has {sizes.get(split)} examples, this attempt {size}")
        elif digests.get(split) != found["split_sha256"][split]:
            problems.append(f"{split}: as many examples, {size}, but other images or labels, or in another order")
    if recorded.get("skipped_sha256") != found.get("skipped_sha256"):
        problems.append("other images cannot be read, and were left out")
    problems += changes()
    raise InputError(
        "the data is not what the run began with.\n" + "\n".join(f"  {problem}" for problem in problems),
        hint="give back the data that the run began with, or start a run of another THAW_RUN_ID",
    )
