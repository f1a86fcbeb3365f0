"""What a person should know of their images before a run, and what to do about it.

Whether a run could begin is decided by the functions that a run itself calls: `judge`, `divided`, `Composition.check`.
The content of an inspection are JSON values, which the command shows as JSON, as a table and as a page:

| key | value |
|---|---|
| `place`, `layout` | where the images are, and how their labels were found |
| `num_images` | image files, also those that cannot be read |
| `classes` | of each class: name, images, how many cannot be read, and how many are in each split of a run |
| `splits` | images in each split of a run; none where a run could not make them |
| `sizes` | smallest, median and largest image by its pixels: `[width, height]` |
| `bytes` | smallest, median and largest file, and the total |
| `formats`, `traits` | readable images by format of the file, and by what is not so in a plain photograph |
| `unreadable` | name and reason of each |
| `copies` | the names of images that are the same byte for byte, together |
| `left_out`, `empty_classes` | other files by kind, and folders of classes without an image |
| `findings` | what to know and what to do, what is worst first |
| `exit_code` | the one with which a run would end at once, 0 where it would begin |
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from job.data.composition import Composition, kinds
from job.data.files.judge import divided, judge, label_indices
from job.data.files.listing import Listing
from job.data.files.survey import TRAITS, Facts
from job.data.resizing import Resizing
from job.data.split_spec import Specs
from job.errors import ExitCode, ThawError
from job.observe import data_events
from job.wording import counted, numbered

MAX_NAMED = 10
LEAST_USED = 0.25
MOST_STRETCHED = 2.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that a person should know, and what to do about it.

    An `error` is refused by a run, which then ends with `exit_code`; a `warning` is worth a look, a `note` is not.
    `examples` are the first of what is meant.
    """

    kind: str
    level: Literal["error", "warning", "note"]
    text: str
    advice: str
    examples: list[str] = field(default_factory=list)
    exit_code: int = 0


def content(
    listing: Listing, seen: Sequence[Facts], specs: Specs, resizing: Resizing, *, stratify: bool, skips: bool
) -> dict[str, Any]:
    """The content of an inspection of a listing whose facts are `seen`.

    `specs` are those of train, validation and test, `skips` says whether a run leaves unreadable images out.
    """
    counts, findings = _judged(listing, seen, specs, resizing, stratify=stratify, skips=skips)
    names = [image.name for image in listing.images]
    readable = [facts for facts in seen if not facts.reason]
    by_size = sorted((facts.width * facts.height, facts.width, facts.height) for facts in readable)
    num_bytes = sorted(facts.num_bytes for facts in readable)
    traits = Counter(trait for facts in readable for trait in facts.traits)
    return {
        "place": listing.place,
        "layout": listing.layout,
        "num_images": len(names),
        "classes": _classes(listing, seen, counts),
        "splits": {split: int(of_classes.sum()) for split, of_classes in counts.items()},
        "sizes": {name: list(size[1:]) for name, size in _spread(by_size).items()},
        "bytes": _spread(num_bytes) | {"total": sum(facts.num_bytes for facts in seen)},
        "formats": dict(Counter(facts.format for facts in readable).most_common()),
        "traits": {name: traits[name] for name in TRAITS if traits[name]},
        "unreadable": [{"name": name, "reason": reason} for name, reason in _reasons(listing, seen).items()],
        "copies": [[names[index] for index in group] for group in _copies(seen)],
        "left_out": dict(listing.left_out),
        "empty_classes": list(listing.empty_classes),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "exit_code": next((finding.exit_code for finding in findings if finding.exit_code), 0),
    }


def _judged(
    listing: Listing, seen: Sequence[Facts], specs: Specs, resizing: Resizing, *, stratify: bool, skips: bool
) -> tuple[Mapping[str, np.ndarray], list[Finding]]:
    """The images of each class, int64 [classes], by split that a run could make; and the findings, the worst first."""
    chosen: dict[str, np.ndarray] = {}
    composition, refused = None, []
    readable = np.array([not facts.reason for facts in seen], bool)
    digests = np.array([np.frombuffer(facts.sha256, np.uint8) for facts in seen], np.uint8).reshape(-1, 32)
    try:
        chosen = divided(listing, judge(listing, specs), digests, stratify=stratify)
        labels = label_indices(listing)
        kept = {name: indices[readable[indices]] if skips else indices for name, indices in chosen.items()}
        composition = Composition.of(
            listing.class_names,
            {name: labels[indices] for name, indices in kept.items()},
            {name: digests[indices] for name, indices in kept.items()},
        )
        composition.check()
    except ThawError as error:
        code = int(error.exit_code)
        refused = [Finding(kind="refused", level="error", text=error.message, advice=error.hint, exit_code=code)]
    num_used = sum(int((~readable[indices]).sum()) for indices in chosen.values())
    found = [
        *refused,
        *_of_unreadable(listing, seen, num_used=num_used, skips=skips),
        *_of_unused(listing, sum(map(len, chosen.values()))),
        *_of_sizes(seen, resizing),
        *_of_copies(listing, seen),
        *(_of_composition(composition) if composition else ()),
        *_of_other_files(listing),
    ]
    order = ("error", "warning", "note")
    return composition.counts if composition else {}, sorted(found, key=lambda finding: order.index(finding.level))


def _classes(listing: Listing, seen: Sequence[Facts], counts: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    num_images = Counter(image.label for image in listing.images)
    num_unreadable = Counter(image.label for image, facts in zip(listing.images, seen, strict=True) if facts.reason)
    return [
        {
            "name": name,
            "num_images": num_images[name],
            "num_unreadable": num_unreadable[name],
            "splits": {split: int(of_classes[index]) for split, of_classes in counts.items()},
        }
        for index, name in enumerate(listing.class_names)
    ]


def _spread(ordered: Sequence[Any]) -> dict[str, Any]:
    if not ordered:
        return {}
    return {"smallest": ordered[0], "median": ordered[(len(ordered) - 1) // 2], "largest": ordered[-1]}


def _reasons(listing: Listing, seen: Sequence[Facts]) -> dict[str, str]:
    """By name, why images cannot be read."""
    return {image.name: facts.reason for image, facts in zip(listing.images, seen, strict=True) if facts.reason}


def _copies(seen: Sequence[Facts]) -> list[list[int]]:
    """The indices of readable images that are the same byte for byte, together, in the order of the first of each."""
    groups: dict[bytes, list[int]] = {}
    for index, facts in enumerate(seen):
        if not facts.reason:
            groups.setdefault(facts.sha256, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _of_unreadable(listing: Listing, seen: Sequence[Facts], *, num_used: int, skips: bool) -> Iterator[Finding]:
    reasons = _reasons(listing, seen)
    if not reasons:
        return
    text = f"{len(reasons):,} of {numbered(len(seen), 'image')} cannot be read ({counted(kinds(reasons.values()))})"
    is_refused = num_used > 0 and not skips
    if is_refused:
        text += f"; {num_used:,} of them {'is' if num_used == 1 else 'are'} in the splits of the run"
        advice = "convert, repair or remove them, or set THAW_ON_UNREADABLE=skip, which leaves them out"
    else:
        advice = "a run leaves them out: " if skips else "they are in no split of the run: "
        advice += "to use them, convert or repair them"
    yield Finding(
        kind="unreadable",
        level="error" if is_refused else "warning",
        text=text,
        advice=advice,
        examples=_first(f"{name}: {reason}" for name, reason in reasons.items()),
        exit_code=int(ExitCode.BAD_INPUT) if is_refused else 0,
    )


def _of_unused(listing: Listing, num_used: int) -> Iterator[Finding]:
    num_unused = len(listing.images) - num_used
    if num_used and num_unused:
        yield Finding(
            kind="unused",
            level="note",
            text=f"{num_unused:,} of {numbered(len(listing.images), 'image')} in no split of the run",
            advice="to use all, let the three splits cover every split that the data brings"
            if listing.has_splits
            else "to use all: THAW_TRAIN_SPLIT=train[:80%], THAW_VALIDATION_SPLIT=train[80%:90%] and "
            "THAW_TEST_SPLIT=train[90%:]",
        )


def _of_sizes(seen: Sequence[Facts], resizing: Resizing) -> Iterator[Finding]:
    """What is lost when most images are stretched to a square without antialiasing."""
    sides = np.array([(facts.width, facts.height) for facts in seen if not facts.reason])
    if resizing.way != "stretch" or not len(sides):
        return
    lost = []
    # Each pixel of the square is interpolated between four of the image.
    if (used := float(np.median(4 * resizing.size**2 / sides.prod(axis=1)))) < LEAST_USED:
        lost.append(f"{used:.1%} of the pixels of the median image are used")
    if (ratio := float(np.median(sides.max(axis=1) / sides.min(axis=1)))) > MOST_STRETCHED:
        lost.append(f"its sides are as 1 to {ratio:.1f}")
    if lost:
        yield Finding(
            kind="stretched",
            level="warning",
            text=f"images are stretched to {resizing.size} x {resizing.size} pixels: {', '.join(lost)}",
            advice="set THAW_RESIZE=crop or pad, which keep the aspect ratio and look at every pixel",
        )


def _of_copies(listing: Listing, seen: Sequence[Facts]) -> Iterator[Finding]:
    groups = [[listing.images[index] for index in indices] for indices in _copies(seen)]
    of_two_labels = [group for group in groups if len({image.label for image in group}) > 1]
    of_two_splits = [group for group in groups if len({image.split for image in group}) > 1]
    others = [group for group in groups if len({(image.label, image.split) for image in group}) == 1]
    if of_two_labels:
        yield Finding(
            kind="two_labels",
            level="warning",
            text=f"{numbered(len(of_two_labels), 'image')} under more than one label, the same byte for byte",
            advice="decide which label is right, and remove the file under the other one",
            examples=_first(" = ".join(f"{image.name} ({image.label})" for image in group) for group in of_two_labels),
        )
    if of_two_splits:
        yield Finding(
            kind="two_splits",
            level="warning",
            text=f"{numbered(len(of_two_splits), 'image')} in more than one split, the same byte for byte",
            advice="remove them from train: what was learned by heart makes the test look better than it is",
            examples=_first(" = ".join(f"{image.name} ({image.split})" for image in group) for group in of_two_splits),
        )
    if others:
        num_copies = sum(len(group) - 1 for group in others)
        yield Finding(
            kind="copies",
            level="note",
            text=f"{numbered(num_copies, 'file')} that {'is a copy' if num_copies == 1 else 'are copies'} of another "
            "image, byte for byte",
            advice="nothing must be done: copies stay in one split; remove them for each image to count once",
            examples=_first(" = ".join(image.name for image in group) for group in others),
        )


def _of_composition(composition: Composition) -> Iterator[Finding]:
    for event in composition.findings():
        if isinstance(event, data_events.ClassMissing):
            text = f"{event.split} has no image of {numbered(event.num_classes, 'class')}"
            advice = "add images of it, or leave it out by THAW_CLASSES; without images nothing is learned or measured"
        elif isinstance(event, data_events.ClassRare):
            text = f"{numbered(event.num_classes, 'class')} with fewer than {event.fewer_than} images to train on"
            advice = "add images: results of so few mean little"
        else:
            continue  # `_of_copies` also has the names
        yield Finding(kind=event.name, level="warning", text=text, advice=advice, examples=_first(event.classes))


def _of_other_files(listing: Listing) -> Iterator[Finding]:
    if listing.empty_classes:
        yield Finding(
            kind="empty_class",
            level="warning",
            text=f"{numbered(len(listing.empty_classes), 'folder')} of a class without an image",
            advice="put images there, or remove the folder; it is no class of the run",
            examples=_first(listing.empty_classes),
        )
    if listing.left_out:
        kinds_of_files = counted(dict(Counter(listing.left_out).most_common()))
        yield Finding(
            kind="left_out",
            level="note",
            text=f"{numbered(sum(listing.left_out.values()), 'other file')} left out ({kinds_of_files})",
            advice="an image is known by the suffix of its name: rename those that are images",
        )


def _first(texts: Iterable[str]) -> list[str]:
    found = list(texts)
    more = len(found) - MAX_NAMED
    return found[:MAX_NAMED] + ([f"and {more:,} more"] if more > 0 else [])
