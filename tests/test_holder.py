"""Who may take a run over at once."""

import subprocess
import sys

import pytest

from job.holder import Holder, this_process


def test_this_process_does_not_yield_to_another_of_its_host() -> None:
    """It is there."""
    holder = this_process(None)
    assert not holder.must_yield_to(holder.model_copy(update={"pid": 1}))


def test_a_process_that_is_gone_yields_to_any_of_its_host() -> None:
    """Killed, it cannot let go by itself."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        here = this_process(None)
        import psutil

        gone = here.model_copy(update={"pid": process.pid, "started": psutil.Process(process.pid).create_time()})
        assert not gone.must_yield_to(here)
        process.kill()
        process.wait()
    assert gone.must_yield_to(here)


def test_a_number_given_to_another_process_is_not_the_holder() -> None:
    """The start of the process tells them apart."""
    here = this_process(None)
    earlier = here.model_copy(update={"started": here.started - 100})
    assert earlier.must_yield_to(here)


@pytest.mark.parametrize(
    "change", [{"host": "elsewhere"}, {"boot_id": "another machine"}, {"process_namespace": "pid:[1]"}]
)
def test_of_another_host_machine_or_container_nothing_is_known(change: dict[str, str]) -> None:
    """The lease decides; two machines may have one name."""
    here = this_process(None)
    assert not here.model_copy(update={**change, "pid": 999_999_999}).must_yield_to(here)


def test_a_holder_is_told_by_names_where_there_are_names() -> None:
    """A person looks for `kubectl logs job/NAME`, not for a uid."""
    here = this_process("uid", job_name="thaw-1", node_name="node-1")
    assert str(here).endswith(f":{here.pid} of Job thaw-1 on node node-1")
    assert str(this_process("uid")).endswith(" of Job uid")
    assert str(this_process(None)) == f"{here.host}:{here.pid}"


def test_pods_of_one_job_yield_to_each_other() -> None:
    """Kubernetes starts the next when it has given up the last."""
    first = Holder(host="pod-a", pid=1, started=0.0, job_uid="uid")
    second = Holder(host="pod-b", pid=1, started=9.0, job_uid="uid")
    other = Holder(host="pod-c", pid=1, started=9.0, job_uid="another")
    nobody = Holder(host="pod-d", pid=1, started=9.0)
    assert first.must_yield_to(second)
    assert not first.must_yield_to(other)
    assert not nobody.must_yield_to(nobody.model_copy(update={"host": "pod-e"}))
