"""Images that cannot be decoded: the error that names them, or the list of those that a run leaves out."""

from collections.abc import Mapping

import numpy as np

from job.data.composition import Skipped, kinds
from job.data.decoding import Damaged
from job.data.source import Examples
from job.errors import DataCorrupt
from job.wording import counted

MAX_NAMED = 20


def corrupt(examples: Mapping[str, Examples], damaged: Damaged, *, hint: str) -> DataCorrupt:
    """The error that says how many images of each kind are damaged, and names the first of them."""
    damaged = {split: _reasons(examples[split], found) for split, found in damaged.items()}
    reasons = [reason for found in damaged.values() for reason in found.values()]
    lines: list[str] = []
    for split, found in damaged.items():
        indices = sorted(found)[: MAX_NAMED - len(lines)]
        names = _names(examples[split], indices)
        lines += [f"  {split}: {name}: {found[index]}" for index, name in zip(indices, names, strict=True)]
    if len(reasons) > len(lines):
        lines.append(f"  and {len(reasons) - len(lines):,} more")
    total = sum(len(split.labels) for split in examples.values())
    counts = kinds(reasons)
    summary = f" ({counted(counts)})" if len(counts) > 1 else ""
    return DataCorrupt(
        f"{len(reasons):,} of the {total:,} images cannot be read{summary}:\n" + "\n".join(lines), hint=hint
    )


def skipped(examples: Mapping[str, Examples], damaged: Damaged) -> tuple[Skipped, ...]:
    """Every damaged image, by split and in order."""
    images = []
    for split, found in damaged.items():
        reasons, indices = _reasons(examples[split], found), sorted(found)
        for index, name in zip(indices, _names(examples[split], indices), strict=True):
            images.append(Skipped(split, name, reasons[index], examples[split].digests[index].tobytes().hex()))
    return tuple(images)


def lost(examples: Mapping[str, Examples], kept: Mapping[str, np.ndarray]) -> DataCorrupt | None:
    """The error that names images that a run could read, and cannot any more; none where there are none.

    `kept`, int64 [n], has the indices of those of each split that are used.
    """
    found: Damaged = {}
    for name, split in examples.items():
        reasons = split.unread
        found[name] = {index: reasons[index] for index in kept[name].tolist() if index in reasons}
    if not any(found.values()):
        return None
    hint = "give the files back as they were, and start the run again; THAW_CACHE=disk reads each file only once"
    return corrupt(examples, found, hint=hint)


def _names(examples: Examples, indices: list[int]) -> list[str]:
    """To look names up may read the whole split."""
    return examples.names(indices) if indices else []


def _reasons(examples: Examples, found: Mapping[int, str]) -> dict[int, str]:
    """Where a file cannot be read, the decoder gets no bytes, and the source has the reason."""
    unread = examples.unread
    return {index: unread.get(index, reason) for index, reason in found.items()}
