"""The page of `inspect`: findings, numbers, and a contact sheet of each class, one file without scripts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from job.data.files.listing import Listing
from job.data.files.survey import Facts
from job.data.formats import opened, orientation, rgb, turned
from job.report.pictures import MAX_SIDE, data_uri
from job.report.rendering import render

MAX_SHEETS = 40
PICTURES_A_CLASS = 12

MEANINGS = {
    "grey": "takes grey as red, green and blue alike",
    "palette": "takes the colours of the palette",
    "transparent": "shows white where nothing is",
    "16 bit": "scales the values to 8 bits",
    "CMYK": "turns the colours into red, green and blue",
    "turned by EXIF": "turns the image upright, as a viewer does",
    "several frames": "takes the first one",
}
"""What a run does with the images that `survey.TRAITS` finds."""


def page(content: Mapping[str, Any], listing: Listing, seen: Sequence[Facts]) -> str:
    """The page of an inspection's content, with pictures of the listing's readable images."""
    return render(
        "contact_sheet.html",
        inspection=content,
        sheets=list(_sheets(listing, seen)),
        meanings=MEANINGS,
        num_more=max(0, len(listing.class_names) - MAX_SHEETS),
    )


def _sheets(listing: Listing, seen: Sequence[Facts]) -> Iterator[list[dict[str, str]]]:
    """For each of the first classes pictures of images spread over all of it."""
    of_class: dict[str, list[int]] = {name: [] for name in listing.class_names}
    for index, (image, facts) in enumerate(zip(listing.images, seen, strict=True)):
        if not facts.reason:
            of_class[image.label].append(index)
    for name in listing.class_names[:MAX_SHEETS]:
        indices = of_class[name]
        places = np.linspace(0, len(indices) - 1, min(PICTURES_A_CLASS, len(indices))).round().astype(int)
        yield [
            {"name": listing.images[indices[place]].name, "picture": _picture(listing.read(indices[place]))}
            for place in places
        ]


def _picture(encoded: bytes) -> str:
    with opened(encoded) as file:
        turn = orientation(file)
        file.draft("RGB", (MAX_SIDE, MAX_SIDE))
        return data_uri(np.asarray(turned(rgb(file), turn)))
