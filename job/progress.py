"""How far an attempt has come, for whoever has to say so when it ends early."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Progress:
    """`step` counts the steps done in the phase; `last_commit` is a checkpoint's name, phase and step."""

    stage: str = "start"
    step: int | None = None
    last_commit: dict[str, Any] | None = None
