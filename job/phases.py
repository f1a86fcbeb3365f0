"""The phases of training, in order: which layers train, for how many epochs, and how fast.

THAW_PHASES lists any number of them. Without it there are the article's two: `head`, with the backbone frozen, and
`fine_tune`; each has two settings, its epochs and its learning rate.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

Schedule = Literal["constant", "linear", "cosine", "plateau"]
Monitor = Literal["loss", "accuracy", "balanced_accuracy"]
Keep = Literal["last", "best"]
OptimizerName = Literal["adam", "sgd", "lion"]
Unfreeze = Annotated[str, Field(pattern=r"^(all|none|top:[1-9][0-9]{0,3}|block:[A-Za-z0-9_.]{1,64})$")]
PhaseName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]

PHASE_NAMES = ("head", "fine_tune")
"""Those of a run without THAW_PHASES."""

STATES_BEFORE, STATES_AFTER = ("prepare",), ("evaluate", "export", "done")
"""The states of a run before its first phase and after its last one; while it trains, the state is the phase's name."""

STAGES = frozenset(
    {*STATES_BEFORE, *STATES_AFTER, "start", "claim", "join", "import", "meet", "fetch", "data", "model", "restore"}
)
"""Names that a phase cannot have: the log and the durations use them for other parts of a run."""


class PhaseRow(BaseModel):
    """A phase as THAW_PHASES has it. Without a schedule, a warm-up or an optimizer it has those of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: PhaseName
    epochs: int = Field(ge=1, le=10_000)
    learning_rate: float = Field(gt=0, le=10)
    unfreeze: Unfreeze = "all"
    schedule: Schedule | None = None
    warmup_epochs: Annotated[float, Field(ge=0, le=10_000)] | None = None
    optimizer: OptimizerName | None = None

    @model_validator(mode="after")
    def _name_is_free(self) -> "PhaseRow":
        if self.name in STAGES:
            raise ValueError(f"{self.name!r} is the name of another part of a run")
        return self


ROWS = TypeAdapter(Annotated[list[PhaseRow], Field(min_length=1, max_length=100)])


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a run. `unfreeze` says which layers of the backbone train: all, none, top:N or block:NAME.

    `learning_rate` is the highest of the phase. It rises from 0 in the first `warmup_epochs`, and then follows the
    schedule to `end_factor` of its value; a plateau multiplies it by `plateau_factor` after `plateau_patience` epochs
    without improvement. The phase ends after `patience` epochs without improvement, if that is a number. Improvement is
    that of the validation loss, accuracy or balanced accuracy, as `monitor` says. Its result is the last or the best of
    its epochs. The other fields are those of the optimizer (`job.train.optimizer`), and 0 where it does nothing of the
    kind.
    """

    name: str
    epochs: int
    learning_rate: float
    unfreeze: str = "all"
    schedule: Schedule = "constant"
    warmup_epochs: float = 0.0
    end_factor: float = 0.0
    plateau_patience: int = 2
    plateau_factor: float = 0.1
    patience: int | None = None
    monitor: Monitor = "loss"
    keep: Keep = "last"
    optimizer: OptimizerName = "adam"
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    ema_decay: float = 0.0

    @property
    def relative_cost(self) -> float:
        """The time of a step, about: with a frozen backbone that of a forward pass, and a backward pass costs two."""
        return {"none": 1.0, "all": 3.0}.get(self.unfreeze, 2.0)


def phases_of(settings: Mapping[str, Any]) -> tuple[Phase, ...]:
    """The phases that train, in order, of settings by variable name without the prefix; JSON values that are valid."""
    text = settings["PHASES"]
    rows = ROWS.validate_json(text) if text is not None else _two_rows(settings)
    phases = []
    for row in rows:
        given = row.model_dump(exclude_none=True)
        # What a row does not say, the setting of that name does.
        values: dict[str, Any] = {
            one.name: given.get(one.name, settings.get(one.name.upper())) for one in dataclasses.fields(Phase)
        }
        phases.append(Phase(**values))
    return tuple(phases)


def _two_rows(settings: Mapping[str, Any]) -> list[PhaseRow]:
    return [
        PhaseRow(name=name, epochs=epochs, learning_rate=settings[f"{name.upper()}_LEARNING_RATE"], unfreeze=unfreeze)
        for name, unfreeze in zip(PHASE_NAMES, ("none", settings["UNFREEZE"]), strict=True)
        if (epochs := settings[f"{name.upper()}_EPOCHS"]) != 0
    ]


def canonical(rows: list[PhaseRow]) -> str:
    """The one text of THAW_PHASES that means these rows, as JSON."""
    return json.dumps([row.model_dump(exclude_defaults=True) for row in rows], separators=(",", ":"))


def title(name: str) -> str:
    """A phase's name for people: `fine_tune` -> `fine-tuning`."""
    return "fine-tuning" if name == PHASE_NAMES[1] else name.replace("_", " ")
