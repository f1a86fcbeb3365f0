"""What a checkpoint says of itself: in its name, and in the metadata of its file."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from job.phases import PhaseName
from job.schema import (
    CHECKPOINTS,
    AttemptNumber,
    Count,
    EpochResult,
    Inputs,
    Lineage,
    Moment,
    Part,
    RunId,
    Text,
    Values,
)


class Description(Part):
    """In the metadata of a checkpoint's file: everything from which a lost record can be rebuilt.

    Fields are those of `Record` and `CheckpointEntry` at the time of the commit, `lineage` is that of its name.
    """

    format: Literal[1] = 1
    run_id: RunId
    fingerprint: Text
    settings: Values
    inputs: Inputs
    lineage: Lineage
    attempt: AttemptNumber
    phase: PhaseName
    step: Count
    time: Moment
    history: tuple[EpochResult, ...]


class CheckpointName(NamedTuple):
    """The parts of the name of a checkpoint's object."""

    phase: str
    step: int
    attempt: int
    upload: int
    lineage: str

    def __str__(self) -> str:
        name = f"{self.phase}-{self.step:08d}-a{self.attempt}-{self.upload}-{self.lineage}"
        return f"{CHECKPOINTS}{name}.safetensors"

    @classmethod
    def parse(cls, name: str) -> "CheckpointName | None":
        """The parts of a name; None for one that is not ours."""
        pattern = r"([a-z][a-z0-9_]{0,31})-(\d{8,15})-a(\d{1,9})-(\d{1,9})-([0-9a-f]{8})"
        match = re.fullmatch(rf"{CHECKPOINTS}{pattern}\.safetensors", name, re.ASCII)
        return cls(match[1], int(match[2]), int(match[3]), int(match[4]), match[5]) if match else None

    @property
    def written(self) -> tuple[int, int]:
        """Written later is larger."""
        return self.attempt, self.upload

    def position(self, phases: Sequence[str]) -> tuple[int, int, int, int]:
        """Later in the training of these phases, or written later, is larger."""
        return phases.index(self.phase) if self.phase in phases else -1, self.step, self.attempt, self.upload
