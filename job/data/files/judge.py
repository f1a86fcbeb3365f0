"""Whether a classifier can be trained on the images of a listing, judged before any is opened.

A start and a plan call the same function.
"""

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

from job.data.files.listing import Listing
from job.data.split_ranges import Range, split_ranges
from job.data.split_spec import DEFAULT_SPECS, SPLIT_NAMES
from job.errors import InputError, InvalidSettings


def judge(listing: Listing, specs: Sequence[str]) -> tuple[Sequence[str], list[list[Range]]]:
    """The specs of train, validation and test, and the ranges of images that they mean.

    At their defaults, on data that brings its own splits, the three specs mean these splits as they are. Raises
    InputError when there are fewer than two classes, InvalidSettings when the specs do not fit the data.
    """
    if len(listing.class_names) < 2:
        found = ", ".join(map(repr, listing.class_names)) or "none"
        raise InputError(
            f"{listing.place}: expected images of two classes or more, found {found} (read as {listing.layout})",
            hint="put the images of each class into a folder of its own, or name a table of paths and labels",
        )
    counts = Counter(image.split for image in listing.images)
    if listing.has_splits and tuple(specs) == DEFAULT_SPECS:
        if missing := [name for name in SPLIT_NAMES if name not in counts]:
            brings = ", ".join(f"{name} ({counts[name]:,})" for name in SPLIT_NAMES if name in counts)
            raise InvalidSettings(
                f"{listing.place} brings the splits {brings}, and no {' and no '.join(missing)}",
                hint="say which examples are for what, for example THAW_TRAIN_SPLIT=train[:80%], "
                "THAW_VALIDATION_SPLIT=train[80%:] and THAW_TEST_SPLIT=validation",
            )
        specs = SPLIT_NAMES
    splits = {
        name: SimpleNamespace(num_examples=count, shard_lengths=[count]) for name, count in sorted(counts.items())
    }
    return specs, split_ranges(specs, splits, of=listing.place)
