"""Object storage: all that a run needs of it, and no more.

An `ObjectStore` keeps immutable bytes under names. Each name has a version that changes with every write,
and every write states the version it expects: MISSING to create, the one last read to replace. So of two writers
that race exactly one wins. Names are relative to the store's root in both directions, with `/` between parts.
This package knows nothing of runs, checkpoints or models.

A store retries by itself, for a while, what a retry may help. What it raises is final: StorageRefused when another try
will not help (no permission, no bucket), StorageError when it may.
"""

from job.storage.local import LocalStore
from job.storage.probe import check_conditional_writes, probe
from job.storage.protocol import MISSING, Digest, ObjectStore, StoredObject, digest_of
from job.storage.uri import open_store

__all__ = [
    "MISSING", "Digest", "LocalStore", "ObjectStore", "StoredObject", "check_conditional_writes",
    "digest_of", "open_store", "probe",
]  # fmt: skip
