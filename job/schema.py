"""The types of the run record, with bounds.

Others can write to the place where it is kept, so every value has a type and a bound, and values that must agree are
compared. What is valid here can be shown, counted and formatted without another check.
"""

import functools
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Self, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from job.data import split_spec
from job.data.resizing import Way
from job.paths import checked_name, is_one_line
from job.phases import STATES_AFTER, STATES_BEFORE, Phase, PhaseName
from job.settings.fields import Precision
from job.settings.settings import Settings, group_of

CHECKPOINTS = "checkpoints/"
"""The prefix of the names of checkpoints; a record with another one is refused."""


def _printable(text: str) -> str:
    if not is_one_line(text):
        raise ValueError("has a character that cannot be printed")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
"""Can be shown in one line as it is, and moves no cursor."""


def _checked_run_id(name: str) -> str:
    if "/" in name:
        raise ValueError(f"{name!r} is not one path segment")
    return checked_name(name)


def _checked_checkpoint(name: str) -> str:
    if not checked_name(name).startswith(CHECKPOINTS):
        raise ValueError(f"{name!r} is not under {CHECKPOINTS}")
    return name


def _checked_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings; those that a reader calculates with have a meaning, and are in their bounds."""
    for name, lowest in (("HEAD_EPOCHS", 0), ("FINE_TUNE_EPOCHS", 0), ("BATCH_SIZE", 1)):
        value = recorded_setting(settings, name)
        if type(value) is not int or not lowest <= value <= 65_536:
            raise ValueError(f"{name} is {value!r}, expected a whole number from {lowest} to 65536")
    if (way := recorded_setting(settings, "RESIZE")) not in get_args(Way):
        raise ValueError(f"RESIZE is {way!r}, expected one of {', '.join(get_args(Way))}")
    split_spec.parse(str(recorded_setting(settings, "TRAIN_SPLIT")))
    recorded_phases(settings)
    return settings


def _checked_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs as they are; the parts that a reader uses are valid."""
    if inputs:
        _Inputs.model_validate(inputs, strict=True)
    return inputs


def recorded_setting(settings: Mapping[str, Any], name: str) -> Any:
    """A setting that changes the result, or its default when the record is older; None for an unknown name."""
    return settings.get(name, _DEFAULTS.get(name))


def recorded_phases(settings: Mapping[str, Any]) -> tuple[Phase, ...]:
    """The phases of recorded settings, in order; there may be none. Raises ValueError when they are not valid."""
    return _phases(tuple((name, settings[name]) for name in sorted(_OF_PHASES & settings.keys())))


@functools.lru_cache(maxsize=64)
def _phases(values: tuple[tuple[str, Any], ...]) -> tuple[Phase, ...]:
    # Kept: a record asks for them at each of its checkpoints, and they cost more than the rest of it.
    settings = dict(values)
    epochs = [recorded_setting(settings, name) for name in ("HEAD_EPOCHS", "FINE_TUNE_EPOCHS")]
    if not any(epochs) and settings.get("PHASES") is None:
        return ()
    try:
        return Settings.model_validate({name.lower(): value for name, value in values}).training_phases()
    except ValidationError as error:
        raise ValueError(f"the phases: {problem_of(error)}") from error


Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[FiniteFloat, Field(ge=0, le=1e10)]
Ratio = Annotated[FiniteFloat, Field(ge=0, le=1)]
Moment = Annotated[
    AwareDatetime,
    Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(2500, 1, 1, tzinfo=UTC)),
    AfterValidator(lambda moment: moment.astimezone(UTC)),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
AttemptNumber = Annotated[int, Field(ge=1, le=2**31)]
Lineage = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
RunId = Annotated[Text, AfterValidator(_checked_run_id)]
Object = Annotated[Text, AfterValidator(checked_name)]
CheckpointObject = Annotated[Text, AfterValidator(_checked_checkpoint)]
Values = Annotated[dict[Text, bool | int | FiniteFloat | str | None], AfterValidator(_checked_settings)]
Inputs = Annotated[dict[str, Any], AfterValidator(_checked_inputs)]


_DEFAULTS = Settings.result_defaults()
_OF_PHASES = frozenset(name for name in _DEFAULTS if group_of(name.lower()) == "phases")


class Part(BaseModel):
    """A part of the record: fields that it does not name are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Open(BaseModel):
    """Has more fields than these."""

    model_config = ConfigDict(frozen=True, extra="allow")


class _Splits(Part):
    train: Count
    validation: Count
    test: Count


class _Data(_Open):
    splits: _Splits


class Arithmetic(_Open):
    precision: Precision
    xla: bool


class _Inputs(_Open):
    data: _Data
    backbone_sha256: Sha256 | None = None
    arithmetic: Arithmetic
    images: Object | None = None


class Holder(Part):
    """One process. `start_ticks` is its start in clock ticks since its host was started, which no clock changes.

    It is None without /proc. `boot_id` distinguishes machines of one host name, `process_namespace` containers; both
    are empty where there are none. `job_uid` is the uid of the Kubernetes Job.
    `started` (seconds since the epoch by the host's clock), the names of Job, node and namespace are for people only.
    """

    host: Text
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    started: FiniteFloat
    start_ticks: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    boot_id: Text = ""
    process_namespace: Text = ""
    job_uid: Text = ""
    job_name: Text = ""
    node_name: Text = ""
    namespace: Text = ""

    def __str__(self) -> str:
        parts = {"of Job": self.job_name or self.job_uid, "in namespace": self.namespace, "on node": self.node_name}
        return " ".join([f"{self.host}:{self.pid}", *(f"{words} {name}" for words, name in parts.items() if name)])


class Attempt(Part):
    """One start of the program on this run; `end` and `exit_code` stay empty when it was killed.

    `num_workers` processes shared it. `seconds`, by stage and category (see `ledger`), and `reached`, the furthest step
    of each phase, are as of the last write of the record by this attempt.
    """

    number: AttemptNumber
    holder: Text
    start: Moment
    end: Moment | None = None
    exit_code: Annotated[int, Field(ge=0, le=255)] | None = None
    num_workers: Annotated[int, Field(ge=1, le=102_400)] = 1
    seconds: dict[Text, dict[Text, Seconds]] = {}
    reached: dict[PhaseName, Count] = {}


class Lease(Part):
    """The run is held for `seconds` after the last write of the record; `renewed` is its time, only to be shown."""

    attempt: int
    holder: Holder
    seconds: Annotated[FiniteFloat, Field(ge=0, le=3600)]
    renewed: Moment | None = None


class CheckpointEntry(Part):
    """A complete checkpoint: its object, its digest, and its position in the training.

    `step` counts the steps done in the phase, `num_epochs` the entries of the record's history up to it, of all phases.
    """

    name: CheckpointObject
    phase: PhaseName
    step: Count
    num_epochs: Count
    size: Count
    sha256: Sha256
    attempt: int
    time: Moment


class StoredFile(Part):
    """Size in bytes and SHA-256 in hexadecimal of an object under `model/`, `report/` or `logs/`."""

    size: Count
    sha256: Sha256


class EpochResult(Part):
    """One finished epoch: mean loss in nats and accuracy in 0..1 over both splits, its speed, and when it ended.

    `step` counts the steps of the phase that were done by then; `learning_rate` is that of the last one. Records of
    earlier versions have no balanced accuracy, here and in the outcome.
    """

    phase: PhaseName
    epoch: Count
    step: Count
    ended: Moment
    train_loss: FiniteFloat
    train_accuracy: FiniteFloat
    validation_loss: FiniteFloat
    validation_accuracy: FiniteFloat
    validation_balanced_accuracy: Ratio | None = None
    train_seconds: Seconds
    validation_seconds: Seconds
    images_per_second: Annotated[FiniteFloat, Field(ge=0)]
    learning_rate: Annotated[FiniteFloat, Field(ge=0, le=10)]


class Outcome(Part):
    """Of a finished run over the test split: accuracy in 0..1 with its 95 % interval, and mean loss in nats.

    `model_sha256` is the digest of the model's weights.
    """

    test_accuracy: Ratio
    test_accuracy_interval: tuple[Ratio, Ratio]
    test_balanced_accuracy: Ratio | None = None
    test_loss: Annotated[FiniteFloat, Field(ge=0)]
    model_sha256: Sha256


class Record(Part):
    """The content of run.json."""

    run_id: RunId
    """Name of the run."""
    fingerprint: Text
    """Of the settings that change the result."""
    settings: Values
    """The settings that change the result."""
    state: Annotated[Text, Field(max_length=32)] = "prepare"
    """How far the run is."""
    revision: Count = 0
    """Counts the writes, so that a waiting attempt sees that the holder is alive."""
    lineages: Annotated[tuple[Lineage, ...], Field(min_length=1)]
    """Of the checkpoints that this record may delete; the last one is its own.

    A new record gets a random lineage, which is in the name of each checkpoint that it writes. So it never deletes what
    another record wrote, of which only the checkpoints may be left. A rebuilt record also gets one, and keeps those of
    the checkpoints that it was rebuilt from.
    """
    attempts: tuple[Attempt, ...] = ()
    """Every start of the program: holder, start, end, exit code, workers, seconds by stage, furthest steps."""
    inputs: Inputs = {}
    """What the run is made from: identity of the data, digests of the first backbone and model, arithmetic."""
    checkpoints: tuple[CheckpointEntry, ...] = ()
    """Those that can be restored, oldest first: name, phase, step, size, SHA-256."""
    history: tuple[EpochResult, ...] = ()
    """The result of each epoch."""
    outcome: Outcome | None = None
    """Of a finished run: test accuracy with its interval, test loss, digest of the model's weights."""
    lease: Lease | None = None
    """Which attempt holds the run, and for how long."""
    set_aside: tuple[CheckpointEntry, ...] = ()
    """Checkpoints that were found damaged: kept, and never used again."""
    files: dict[Object, StoredFile] = {}
    """Of a finished run: size and SHA-256 of each object under `model/`, `report/` and `logs/`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        num_attempts = len(self.attempts)
        if [attempt.number for attempt in self.attempts] != list(range(1, num_attempts + 1)):
            raise ValueError("attempts are not numbered 1, 2, 3 ...")
        if self.lease is not None and self.lease.attempt != num_attempts:
            raise ValueError(f"the lease is of attempt {self.lease.attempt}, and the newest is {num_attempts}")
        if (self.state == "done") != (self.outcome is not None):
            raise ValueError(f"the state is {self.state}, {'with' if self.outcome else 'without'} an outcome")
        if self.state == "done" and (not self.attempts or self.attempts[-1].end is None):
            raise ValueError("the state is done, and no attempt has ended")
        phases = [phase.name for phase in self.phases()]
        if self.state not in (*STATES_BEFORE, *phases, *STATES_AFTER):
            raise ValueError(f"the state is {self.state!r}, and the phases are {', '.join(phases)}")
        for entry in (*self.checkpoints, *self.set_aside):
            if not 1 <= entry.attempt <= num_attempts:
                raise ValueError(f"{entry.name} is of attempt {entry.attempt} of {num_attempts}")
        for entry in self.checkpoints:
            if entry.num_epochs > len(self.history):
                raise ValueError(f"{entry.name} has {entry.num_epochs} epochs, and the history {len(self.history)}")
            if entry.phase not in phases:
                raise ValueError(f"{entry.name} is of a phase that the settings do not have")
            num_steps = self.num_steps(entry.phase)
            if num_steps is not None and entry.step > num_steps:
                raise ValueError(f"{entry.name} is of step {entry.step}, and the phase has {num_steps}")
        return self

    def phases(self) -> tuple[Phase, ...]:
        """The phases that train, in order."""
        return recorded_phases(self.settings)

    def num_steps(self, phase: str) -> int | None:
        """The steps of a phase from its first to its last; None until the size of the data is known."""
        if not self.inputs:
            return None
        num_batches = math.ceil(self.inputs["data"]["splits"]["train"] / recorded_setting(self.settings, "BATCH_SIZE"))
        return sum(one.epochs for one in self.phases() if one.name == phase) * num_batches


def problem_of(error: Exception) -> str:
    """An error, or the first problem of a ValidationError, in one printable line of at most 300 characters."""
    text = str(error)
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        text = f"{where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}"
    return text.encode("unicode_escape").decode()[:300]
