"""The exit codes are a contract; the tree in the docstring is the tree of the classes."""

import re

from job import errors
from job.errors import ExitCode, ThawError


def every_error() -> list[type[ThawError]]:
    found, pending = [], [ThawError]
    while pending:
        error = pending.pop()
        found.append(error)
        pending += [kind for kind in error.__subclasses__() if kind.__module__ == ThawError.__module__]
    return found


def test_exit_codes_are_those_of_the_contract() -> None:
    """The manifests and their readers rely on these numbers; each has a meaning, and what a retry does."""
    assert all(code.meaning and code.retry for code in ExitCode)
    assert {code.name: int(code) for code in ExitCode} == {
        "COMPLETE": 0,
        "UNEXPECTED": 1,
        "INVALID_SETTINGS": 2,
        "RUN_MISMATCH": 3,
        "BAD_INPUT": 4,
        "DIVERGED": 5,
        "QUALITY_GATE": 6,
        "MEMORY_EXHAUSTED": 7,
        "INTERRUPTED": 42,
        "SUPERSEDED": 43,
        "STORAGE_UNAVAILABLE": 44,
        "PEER_LOST": 45,
        "PEERS_MISSING": 46,
    }


def test_the_tree_in_the_docstring_is_that_of_the_classes() -> None:
    """A direct child of the root, and what differs from its parent, show their number; the others inherit it."""
    for error in every_error():
        parent = error.__bases__[0]
        if parent is ThawError or getattr(parent, "exit_code", error.exit_code) != error.exit_code:
            assert re.search(rf"\b{error.__name__}\s+{int(error.exit_code)}\b", errors.__doc__ or "")
        else:
            assert re.search(rf"\b{error.__name__}\b", errors.__doc__ or "")


def test_no_failure_looks_like_success() -> None:
    """No error carries the exit code of a complete run."""
    assert all(error.exit_code != ExitCode.COMPLETE for error in every_error())
