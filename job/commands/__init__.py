"""The commands beside `run`, each in a room of its own that is imported only when it is asked for."""

from collections.abc import Callable

from job.arguments import ListRuns, Mirror, Plan, Predict, Repair, Status, Verify
from job.errors import ExitCode
from job.events import Reader

Question = Plan | Status | ListRuns | Predict | Verify | Repair
"""What is answered on standard output, and can be ended anywhere."""


def answer(question: Question) -> ExitCode:
    """Print the answer; returns what it says in short. Raises ThawError when there is none."""
    match question:
        case Plan():
            from job.commands.plan import plan

            return plan(question)
        case Status():
            from job.commands.status import status

            return status(question)
        case ListRuns():
            from job.commands.list import list_runs

            return list_runs(question)
        case Predict():
            from job.console import without_native_notes

            with without_native_notes():
                from job.commands.predict import predict

            return predict(question)
        case Verify():
            from job.commands.verify import verify

            return verify(question)
        case Repair():
            from job.commands.repair import repair

            return repair(question)


def fill_mirror(mirror: Mirror, *, reader: Reader, check_stop: Callable[[], None]) -> None:
    """Put data and weights into a mirror."""
    from job.commands.mirror import fill

    fill(mirror.settings, to=mirror.to, reader=reader, check_stop=check_stop)
