"""The order of a person's own images, and where it may be cut.

TFDS shuffles a data set when it is prepared, so that its slices are alike. Image files lie sorted by class; they get
an order here that is a pure function of what the images are: the same images give the same slices whatever their names,
folders and file system are. This module knows numbers alone.
"""

import numpy as np


def shuffled(labels: np.ndarray, digests: np.ndarray, *, stratify: bool) -> np.ndarray:
    """A permutation of 0 .. n - 1, int64, from the labels, int32 [n], and the SHA-256 of each image, uint8 [n, 32].

    Images with the same bytes are neighbours. Otherwise the order is that of the digests, which is as good as random.
    With `stratify` every slice has its share of each class: image i of the n of a class comes at i / n of the way, so
    the first slice has an image of every class. Images with the same bytes count for the class of the lowest label.
    """
    if not len(labels):
        return np.arange(0)
    rows = _rows(digests)
    # Of the same image under several labels, the one with the lowest label comes first.
    by_digest = np.lexsort((labels, rows))
    if not stratify:
        return by_digest
    ordered = rows[by_digest]
    firsts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    lengths = np.diff(np.append(firsts, len(labels)))
    classes = labels[by_digest[firsts]]
    place = np.empty(len(firsts))
    for label in np.unique(classes):
        chosen = np.flatnonzero(classes == label)
        before = np.cumsum(lengths[chosen]) - lengths[chosen]
        place[chosen] = before / lengths[chosen].sum()
    # Stable: at the same place, the order of the digests stays.
    groups = np.argsort(place, kind="stable")
    return np.concatenate([by_digest[firsts[group] : firsts[group] + lengths[group]] for group in groups])


def cut(position: int, digests: np.ndarray) -> int:
    """Where an order may be cut: at `position`, or before it, where images with the same bytes begin.

    `digests` are uint8 [n, 32] in that order. So the same image is never on both sides.
    """
    rows = _rows(digests)
    while 0 < position < len(rows) and rows[position] == rows[position - 1]:
        position -= 1
    return position


def _rows(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests).view("S32").ravel()
