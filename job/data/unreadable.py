"""Images that cannot be decoded: the error that names them, or the list of those that a run leaves out."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job.data.decoding import Damaged
from job.data.source import Examples
from job.errors import DataCorrupt

MAX_NAMED = 20


@dataclass(frozen=True)
class Skipped:
    """An image that was left out, in `split`: its name, why, and the SHA-256 of its bytes."""

    split: str
    name: str
    reason: str
    sha256: str


def corrupt(examples: Mapping[str, Examples], damaged: Damaged, *, hint: str) -> DataCorrupt:
    """The error that says how many images of each kind are damaged, and names the first of them."""
    reasons = [reason for found in damaged.values() for reason in found.values()]
    lines: list[str] = []
    for split, found in damaged.items():
        indices = sorted(found)[: MAX_NAMED - len(lines)]
        names = examples[split].names(indices) if indices else []
        lines += [f"  {split}: {name}: {found[index]}" for index, name in zip(indices, names, strict=True)]
    if len(reasons) > len(lines):
        lines.append(f"  and {len(reasons) - len(lines):,} more")
    total = sum(len(split.labels) for split in examples.values())
    counts = kinds(reasons)
    summary = f" ({'; '.join(f'{count:,} {kind}' for kind, count in counts.items())})" if len(counts) > 1 else ""
    return DataCorrupt(
        f"{len(reasons):,} of the {total:,} images cannot be read{summary}:\n" + "\n".join(lines), hint=hint
    )


def skipped(examples: Mapping[str, Examples], damaged: Damaged) -> tuple[Skipped, ...]:
    """Every damaged image, by split and in order."""
    return tuple(
        Skipped(split, name, found[index], examples[split].digests[index].tobytes().hex())
        for split, found in damaged.items()
        for index, name in zip(sorted(found), examples[split].names(sorted(found)) if found else (), strict=True)
    )


def kinds(reasons: Iterable[str]) -> dict[str, int]:
    """How many images there are of each kind, the most frequent first. A kind is a reason without its details."""
    return dict(Counter(reason.split(":")[0] for reason in reasons).most_common())


def identity(images: Sequence[Skipped]) -> dict[str, Any]:
    """What identifies the images that were left out, as JSON."""
    digest = hashlib.sha256("".join(sorted(image.sha256 for image in images)).encode())
    return {"count": len(images), "sha256": digest.hexdigest()}
