"""Images that cannot be decoded: the error that names them, or the list of those that a run leaves out."""

from collections.abc import Mapping

from job.data.composition import Skipped, kinds
from job.data.decoding import Damaged
from job.data.source import Examples
from job.errors import DataCorrupt

MAX_NAMED = 20


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
    summary = f" ({', '.join(f'{kind}: {count:,}' for kind, count in counts.items())})" if len(counts) > 1 else ""
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
