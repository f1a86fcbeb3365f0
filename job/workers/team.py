"""What a run knows of the other workers: what each side does for it (`peers`), and the team of one."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from job.errors import ThawError
from job.workers.share import Share


class Team(Protocol):
    """The workers of a run, as one of them sees it. Worker 0 leads: it alone writes.

    `share` is what this worker takes.
    """

    share: Share

    def meet(self) -> None:
        """Return once all workers have called this, and each can reach every other.

        Raises InvalidSettings when the port for tensors is taken, PeersMissing (worker 0) when others do not come or
        cannot be reached, PeerLost, Interrupted.
        """

    def check(self) -> None:
        """Raise PeerLost once another worker is gone, Interrupted once any of them was stopped.

        Within `steps` a stop does not raise here: workers that take steps together agree on the last one.
        """

    @property
    def is_stopping(self) -> bool:
        """Whether any worker was stopped, as far as this one knows."""

    def steps(self) -> contextlib.AbstractContextManager[None]:
        """Steps are taken together inside."""

    def interrupted(self) -> ThawError:
        """The error for workers that have agreed to stop."""

    def failed(self, error: Exception) -> Exception:
        """What to raise for an error of work that is done together: PeerLost if another worker is gone, Interrupted if
        workers leave because they were stopped, else the error itself. Waits until that is known.
        """

    def tell(self, subject: str, content: Any) -> None:
        """Worker 0 sends a JSON value to the others. A worker that follows, or is alone, sends nothing."""

    def hear(self, subject: str) -> Any:
        """What worker 0 has sent about it, in order; waits for it, and raises as `check` does."""

    def dismiss(self) -> None:
        """Worker 0 does not need the others any more: their end, stop or failure does not concern it from now on."""


class Alone(Team):
    """The team of one worker."""

    share = Share()
    is_stopping = False

    def __init__(self, check_signal: Callable[[], None]) -> None:
        self._check_signal = check_signal

    def meet(self) -> None: ...

    def check(self) -> None:
        self._check_signal()

    @contextlib.contextmanager
    def steps(self) -> Iterator[None]:
        yield

    def interrupted(self) -> ThawError:
        raise NotImplementedError("a worker that is alone stops at `check`")

    def failed(self, error: Exception) -> Exception:
        return error

    def tell(self, subject: str, content: Any) -> None: ...
    def dismiss(self) -> None: ...

    def hear(self, subject: str) -> Any:
        raise NotImplementedError("a worker that is alone hears nothing")
