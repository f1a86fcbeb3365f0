"""The content of an inspection, as JSON values: what the command shows, as JSON, as a table and as a page.

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
from collections.abc import Sequence
from typing import Any

from job.data.files.findings import Judged, copies
from job.data.files.listing import Listing
from job.data.files.survey import TRAITS, Facts


def content(listing: Listing, seen: Sequence[Facts], judged: Judged) -> dict[str, Any]:
    """The content, of a listing, the facts of its images and what is to be said of them."""
    names = [image.name for image in listing.images]
    readable = [facts for facts in seen if not facts.reason]
    by_size = sorted((facts.width * facts.height, facts.width, facts.height) for facts in readable)
    num_bytes = sorted(facts.num_bytes for facts in readable)
    traits = Counter(trait for facts in readable for trait in facts.traits)
    return {
        "place": listing.place,
        "layout": listing.layout,
        "num_images": len(names),
        "classes": _classes(listing, seen, judged),
        "splits": {split: int(counts.sum()) for split, counts in judged.counts.items()},
        "sizes": {name: list(size[1:]) for name, size in _spread(by_size).items()},
        "bytes": _spread(num_bytes) | {"total": sum(facts.num_bytes for facts in seen)},
        "formats": dict(Counter(facts.format for facts in readable).most_common()),
        "traits": {name: traits[name] for name in TRAITS if traits[name]},
        "unreadable": [
            {"name": name, "reason": facts.reason} for name, facts in zip(names, seen, strict=True) if facts.reason
        ],
        "copies": [[names[index] for index in group] for group in copies(seen)],
        "left_out": dict(listing.left_out),
        "empty_classes": list(listing.empty_classes),
        "findings": [dataclasses.asdict(finding) for finding in judged.findings],
        "exit_code": int(judged.exit_code),
    }


def _classes(listing: Listing, seen: Sequence[Facts], judged: Judged) -> list[dict[str, Any]]:
    num_images = Counter(image.label for image in listing.images)
    num_unreadable = Counter(image.label for image, facts in zip(listing.images, seen, strict=True) if facts.reason)
    return [
        {
            "name": name,
            "num_images": num_images[name],
            "num_unreadable": num_unreadable[name],
            "splits": {split: int(counts[index]) for split, counts in judged.counts.items()},
        }
        for index, name in enumerate(listing.class_names)
    ]


def _spread(ordered: Sequence[Any]) -> dict[str, Any]:
    if not ordered:
        return {}
    return {"smallest": ordered[0], "median": ordered[(len(ordered) - 1) // 2], "largest": ordered[-1]}
