"""A sweep in the cluster: a run for each row, and a row that fails alone."""

from job.errors import ExitCode
from tests.e2e.cluster import Namespace
from tests.e2e.conftest import See
from tests.e2e.runs import Runs, name_of_job

ROWS = "THAW_SEED=1\nTHAW_SEED=2 THAW_TEST_SPLIT=nothing\nTHAW_SEED=3\n"
"""The data has no split of that name, which only the data can tell."""


def test_a_row_that_fails_stops_no_other(namespace: Namespace, runs: Runs, see: See) -> None:
    """The others train, each as a run of its own; the Job says which row has failed."""
    manifests = runs.render("sweep", components=("sweep",), rows=ROWS)
    job = name_of_job(manifests)
    namespace.apply(manifests)
    try:
        assert namespace.wait_for_end(job)["type"] == "Failed"
        status = namespace.get("job", job)["status"]
        assert (status["completedIndexes"], status["failedIndexes"]) == ("0,2", "1")
        pods = [namespace.pods(job, index) for index in range(3)]
        (failed,) = pods[1]
        assert namespace.terminated(failed["metadata"]["name"])["exitCode"] == ExitCode.INVALID_SETTINGS
        lines = [namespace.log(pods[index][-1]["metadata"]["name"])[-1] for index in (0, 2)]
        assert {line["event"] for line in lines} == {"run_finished"}
        assert len({line["run_id"] for line in lines}) == 2
        see(", ".join(f"{line['run_id']} {line['test_accuracy']:.3f}" for line in lines))
    finally:
        namespace.kubectl("delete", "job", job)


def test_a_sweep_with_another_row_trains_that_row_alone(namespace: Namespace, runs: Runs, see: See) -> None:
    """Wherever it stands: the others are complete."""
    first = runs.render("more", components=("sweep",), rows="THAW_SEED=1\n")
    more = runs.render("more", components=("sweep",), rows="THAW_SEED=4\nTHAW_SEED=1\n")
    jobs = [name_of_job(manifests) for manifests in (first, more)]
    assert jobs[0] != jobs[1]
    for job, manifests in zip(jobs, (first, more), strict=True):
        namespace.apply(manifests)
        assert namespace.wait_for_end(job)["type"] == "Complete"
    ends = [namespace.log(namespace.pods(jobs[1], index)[-1]["metadata"]["name"])[-1]["event"] for index in range(2)]
    assert ends == ["run_finished", "run_already_done"]
    see("rows 0 and 1: " + ", ".join(ends))
    namespace.kubectl("delete", "job", *jobs)
