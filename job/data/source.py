"""The labelled images of a run: of a TFDS data set, or image files. Above it nothing knows which.

Keras' `image_dataset_from_directory` and TFDS' `ImageFolder` are not used for files: neither reads archives, tables or
buckets, both take the order from names and a seed, and neither names a damaged file or knows what it trained on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from job.data.split_spec import Specs

if TYPE_CHECKING:
    import tensorflow as tf


class Examples(Protocol):
    """The examples of one split, in an order that never changes.

    `labels` are int32 [n], 0 to classes - 1, and `digests` the SHA-256 of the encoded images, uint8 [n, 32].
    `is_in_any_order` says whether an example can be read by its index. `unread` has the index and the reason of each
    whose bytes could not be had, or were others later, as far as that was tried.
    """

    labels: np.ndarray
    digests: np.ndarray

    @property
    def unread(self) -> Mapping[int, str]: ...

    @property
    def is_in_any_order(self) -> bool: ...

    def mapped(self, order: np.ndarray, use: "Callable[[tf.Tensor], tf.Tensor]") -> "tf.data.Dataset":
        """What `use` makes, in a graph, of the bytes of each image of `order` in turn.

        `order` are indices, which are 0, 1, 2, ... unless the examples are in any order.
        """

    def names(self, indices: Sequence[int]) -> list[str]:
        """What a person knows these examples by; `indices` are in order."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images, all read once. `examples` are those of each split, and `specs` what the splits are of the data.

    `identity` says of which data set, where its content alone does not, `has_names` whether each example has a name of
    its own, which costs nothing to look up, `repair_hint` what to do about images that cannot be read. `num_unused` own
    images are in none of the splits.
    """

    identity: str
    class_names: tuple[str, ...]
    has_names: bool
    repair_hint: str
    specs: Specs
    examples: Mapping[str, Examples]
    num_unused: int = 0
