"""Who may take a run over at once."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from job.run.holder import can_be_taken_over_by, is_there, state_and_start, this_process
from job.schema import Holder
from tests.conftest import REPOSITORY

Program = Callable[[str], tuple[subprocess.Popen[str], Holder]]


@pytest.fixture
def program() -> Iterator[Program]:
    """Starts a Python program in a process of its own, which is the holder that it says once it runs."""
    processes: list[subprocess.Popen[str]] = []

    def begin(source: str) -> tuple[subprocess.Popen[str], Holder]:
        says = "from job.run.holder import this_process; print(this_process(None).model_dump_json(), flush=True)"
        process = subprocess.Popen(
            [sys.executable, "-c", f"{says}\n{source}"], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        processes.append(process)
        assert process.stdout is not None
        return process, Holder.model_validate_json(process.stdout.readline())

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_the_run_of_a_process_that_is_gone_is_free_on_its_host(program: Program) -> None:
    """Killed, it cannot release the run itself."""
    here = this_process(None)
    process, holder = program("import time; time.sleep(60)")
    assert (is_there(holder, seen_from=here), can_be_taken_over_by(holder, here)) == (True, False)
    process.kill()
    process.wait()
    assert (is_there(holder, seen_from=here), can_be_taken_over_by(holder, here)) == (False, True)


def test_a_process_that_has_ended_and_was_not_waited_for_is_gone(program: Program) -> None:
    """A zombie has its number still, and does nothing any more."""
    process, holder = program("")
    assert process.stdout is not None
    process.stdout.read()
    stat = Path(f"/proc/{process.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert can_be_taken_over_by(holder, this_process(None))


def test_a_stopped_process_is_there(program: Program) -> None:
    """It may go on at any time; the lease decides."""
    process, holder = program("import time; time.sleep(60)")
    process.send_signal(signal.SIGSTOP)
    assert not can_be_taken_over_by(holder, this_process(None))


def test_a_number_given_to_another_process_is_not_the_holder() -> None:
    """The start of the process tells them apart."""
    here = this_process(None)
    assert here.start_ticks is not None
    assert can_be_taken_over_by(here.model_copy(update={"start_ticks": here.start_ticks - 1}), here)


def test_a_step_of_the_clock_makes_no_holder_look_dead() -> None:
    """Ticks since the start of the host identify a process, and no clock changes them."""
    here = this_process(None)
    earlier = here.model_copy(update={"started": here.started - 90})
    assert (is_there(earlier, seen_from=here), can_be_taken_over_by(earlier, here)) == (True, False)


def test_a_process_of_any_name_is_found(tmp_path: Path) -> None:
    """The name is in /proc as it is, and may look like other fields."""
    odd = tmp_path / ") Z 1 1 ("
    shutil.copy("/bin/sleep", odd)
    with subprocess.Popen([odd, "60"]) as process:
        state, ticks = state_and_start(process.pid) or ("", 0)
        process.kill()
    assert state in "RS"
    assert ticks > (this_process(None).start_ticks or 0)


@pytest.mark.parametrize("change", [{"start_ticks": None}, {"boot_id": ""}])
def test_a_holder_of_which_too_little_is_recorded_may_be_alive(change: dict[str, Any]) -> None:
    """An earlier version wrote it, or a system without /proc: the lease decides."""
    here = this_process(None).model_copy(update=change)
    gone = here.model_copy(update={"pid": 999_999_999})
    assert (is_there(gone, seen_from=here), can_be_taken_over_by(gone, here)) == (None, False)


@pytest.mark.parametrize(
    "change", [{"host": "elsewhere"}, {"boot_id": "another machine"}, {"process_namespace": "pid:[1]"}]
)
def test_a_process_of_another_host_machine_or_container_may_be_alive(change: dict[str, str]) -> None:
    """The lease decides; two machines may have one name."""
    here = this_process(None)
    assert is_there(here.model_copy(update={**change, "pid": 999_999_999}), seen_from=here) is None


def test_a_holder_is_shown_by_names_where_there_are_names() -> None:
    """A person looks for `kubectl logs job/NAME`, not for a uid."""
    here = this_process("uid", job_name="thaw-1", node_name="node-1", namespace="team-a")
    assert str(here).endswith(f":{here.pid} of Job thaw-1 in namespace team-a on node node-1")
    assert str(this_process("uid")).endswith(" of Job uid")
    assert str(this_process(None)) == f"{here.host}:{here.pid}"


def test_pods_of_one_job_take_over_from_each_other() -> None:
    """Kubernetes starts the next when it has given up the last."""
    first = Holder(host="pod-a", pid=1, started=0.0, job_uid="uid")
    second = Holder(host="pod-b", pid=1, started=9.0, job_uid="uid")
    other = Holder(host="pod-c", pid=1, started=9.0, job_uid="another")
    outside = Holder(host="pod-d", pid=1, started=9.0)
    assert can_be_taken_over_by(first, second)
    assert not can_be_taken_over_by(first, other)
    assert not can_be_taken_over_by(outside, outside.model_copy(update={"host": "pod-e"}))
