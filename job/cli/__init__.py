"""The commands beside `run`, each in a room of its own that is imported only when it is asked for."""

from collections.abc import Callable

from job.cli.arguments import ListRuns, Mirror, Plan, Predict, Repair, Status, Verify
from job.errors import ExitCode
from job.observe.events import Observer

Question = Plan | Status | ListRuns | Predict | Verify | Repair
"""What is answered on standard output, and can be ended anywhere."""


def answer(question: Question) -> ExitCode:
    """Print the answer; returns what it says in short. Raises ThawError when there is none."""
    match question:
        case Plan():
            from job.cli.plan import plan

            return plan(question)
        case Status():
            from job.cli.status import status

            return status(question)
        case ListRuns():
            from job.cli.list import list_runs

            return list_runs(question)
        case Predict():
            from job.observe.log import without_native_notes

            with without_native_notes():
                from job.cli.predict import predict

            return predict(question)
        case Verify():
            from job.cli.verify import verify

            return verify(question)
        case Repair():
            from job.cli.repair import repair

            return repair(question)


def fill_mirror(mirror: Mirror, *, observer: Observer, check_stop: Callable[[], None]) -> None:
    """Put data and weights into a mirror."""
    from job.cli.mirror import fill

    fill(mirror.settings, to=mirror.to, observer=observer, check_stop=check_stop)
