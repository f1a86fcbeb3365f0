"""Whether a classifier can be trained on the images of a listing, before any is opened; and the split of each image.

A start, `plan` and `inspect` call the same functions.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np

from job.data.composition import Composition
from job.data.files import order
from job.data.files.listing import Listing
from job.data.split_ranges import split_ranges
from job.data.split_spec import DEFAULT_SPECS, SPLIT_NAMES, Interval, Specs, given_as, resolved
from job.errors import DataCorrupt, InputError, InvalidSettings, ThawError
from job.wording import some

_NO_BYTES = hashlib.sha256().digest()


def judge(listing: Listing, specs: Specs) -> tuple[Specs, dict[str, list[Interval]]]:
    """The specs as they are meant, and the ranges of images that they mean, by split.

    At their defaults, on data that brings its own splits, the specs of a run mean these splits as they are. Raises
    InputError when there are fewer than two classes to learn, InvalidSettings when the specs do not fit the data.
    """
    if len(listing.class_names) < 2 and "train" in specs:
        found = ", ".join(map(repr, listing.class_names)) or "none"
        raise InputError(
            f"{listing.place}: expected images of two classes or more, found {found} (read as {listing.layout})",
            hint="put the images of each class into a folder of its own, or name a table of paths and labels",
        )
    counts = Counter(image.split for image in listing.images)
    if listing.has_splits and specs.items() <= dict(zip(SPLIT_NAMES, DEFAULT_SPECS, strict=True)).items():
        if missing := [name for name in specs if name not in counts]:
            brings = ", ".join(f"{name} ({counts[name]:,})" for name in SPLIT_NAMES if name in counts)
            raise InvalidSettings(
                f"{listing.place} brings the splits {brings}, and no {' and no '.join(missing)}",
                hint=f"say which examples are for what, for example {_example(counts)}",
            )
        specs = {name: name for name in specs}
    specs = resolved(specs, sorted(counts))
    splits = {
        name: SimpleNamespace(num_examples=count, shard_lengths=[count]) for name, count in sorted(counts.items())
    }
    return specs, split_ranges(specs, splits, of=listing.place)


def _example(counts: Mapping[str, int]) -> str:
    """Settings that make three splits of those, fewer, that there are: what is missing is cut from train."""
    specs = {name: name for name in SPLIT_NAMES if name in counts}
    source = "train" if "train" in specs else max(specs, key=lambda name: counts[name])
    parts = [source, *(name for name in SPLIT_NAMES if name not in counts)]
    cuts = ("[:80%]", "[80%:]") if len(parts) == 2 else ("[:80%]", "[80%:90%]", "[90%:]")
    specs |= {name: f"{source}{cut}" for name, cut in zip(sorted(parts, key=SPLIT_NAMES.index), cuts, strict=True)}
    *settings, last = (f"THAW_{name.upper()}_SPLIT={specs[name]}" for name in SPLIT_NAMES)
    return f"{', '.join(settings)} and {last}"


def label_indices(listing: Listing) -> np.ndarray:
    """The class of each image as its place in `class_names`, int32 [n]."""
    index = {name: number for number, name in enumerate(listing.class_names)}
    return np.array([index[image.label] for image in listing.images], np.int32)


def check_whole_splits(listing: Listing, judged: tuple[Specs, dict[str, list[Interval]]]) -> None:
    """Raise InputError where the splits that the data brings have classes that do not fit together.

    `judged` is what `judge` returned. What is in a slice is not known before the images are read.
    """
    sizes = Counter(image.split for image in listing.images)
    labels, splits = label_indices(listing), np.array([image.split for image in listing.images])
    chosen = {}
    for name, parts in judged[1].items():
        if any((part.start, part.stop) != (0, sizes[part.name]) for part in parts):
            return
        chosen[name] = labels[np.isin(splits, [part.name for part in parts])]
    unread = {name: np.zeros((len(found), 32), np.uint8) for name, found in chosen.items()}
    Composition.of(listing.class_names, chosen, unread).check()


def divided(
    listing: Listing, judged: tuple[Specs, dict[str, list[Interval]]], digests: np.ndarray, *, stratify: bool
) -> dict[str, np.ndarray]:
    """The indices of the images in each split, int64 [n], in their order.

    `judged` is what `judge` returned, `digests` the SHA-256 of each image, uint8 [n, 32]. Raises InvalidSettings when a
    split has no image, DataCorrupt when that is because many cannot be read.
    """
    labels, splits = label_indices(listing), np.array([image.split for image in listing.images])
    orders = {}
    for split in np.unique(splits).tolist():
        found = np.flatnonzero(splits == split)
        orders[split] = found[order.shuffled(labels[found], digests[found], stratify=stratify)]
    chosen, (specs, ranges) = {}, judged
    for name, parts in ranges.items():
        pieces = []
        for part in parts:
            ordered = digests[orders[part.name]]
            start, stop = (order.cut(position, ordered) for position in (part.start, part.stop))
            pieces.append(orders[part.name][start:stop])
        chosen[name] = np.concatenate(pieces)
        if not len(chosen[name]):
            raise _no_examples(listing, f"{given_as(name)}={specs[name]!r}", digests)
    return chosen


def _no_examples(listing: Listing, setting: str, digests: np.ndarray) -> ThawError:
    """The error of a split that images with the same bytes have left without any; to have none is the same too."""
    empty = [image.name for image, digest in zip(listing.images, digests, strict=True) if digest.tobytes() == _NO_BYTES]
    if empty:
        return DataCorrupt(
            f"{len(empty):,} of the {len(digests):,} images are empty, or cannot be read ({some(empty)}), so that "
            f"{setting} has none",
            hint="thaw inspect says why; repair or remove them",
        )
    return InvalidSettings(
        f"{setting}: has no examples, since the same image is never in two splits",
        hint="remove the copies, or choose larger splits: thaw inspect names images that are the same",
    )
