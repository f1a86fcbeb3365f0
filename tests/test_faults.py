"""The fault matrix: each fault at each request of a run on a bucket, and two attempts started together.

In every cell the run ends complete and the same as one that nothing disturbed, or with a documented exit code, and then
the next attempt completes it.
"""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.errors import ExitCode, StorageError, StorageRefused
from job.settings.settings import Settings
from tests.conftest import SMALL_RUN
from tests.gcs_server import BUCKET, FAULTS, FLIP, LASTING, GcsServer
from tests.processes import Environment, begin, place_of, result
from tests.runs import ONE_PHASE, Small, Whole, places, result_of, start
from tests.stores import gcs_client

SHORT = {"head_epochs": 1, "fine_tune_epochs": 1, "lease_seconds": 3600}


@pytest.fixture
def undisturbed(whole: Whole) -> dict[str, Any]:
    """The result of the short run, on a disk."""
    return result_of(whole(**SHORT)[0])


@pytest.fixture(scope="module")
def struck(gcs_server: GcsServer, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """The requests where faults strike a run, by number: always the same, for it has no time to renew its lease."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
        gcs_server.clear()
        folders = {"data_dir": str(prepared), "cache_dir": tmp_path_factory.mktemp("counted")}
        start(Settings(**(SMALL_RUN | SHORT | folders)), gcs_client())
        return places([operation for operation, _ in gcs_server.requests])


def check_cell(gcs: GcsServer, small: Small, undisturbed: dict[str, Any], kind: str, at: int) -> None:
    gcs.clear()
    fault = gcs.fail(kind, at=at)
    if kind in LASTING:
        # Ends with 44, unless what was refused can wait, as a prune can.
        with contextlib.suppress(StorageRefused):
            start(small(**SHORT), gcs_client())
        assert fault.struck == 1, (kind, at, gcs.requests)
    start(small(**SHORT), gcs_client())
    assert fault.struck == 1, (kind, at, gcs.requests)
    assert result_of(gcs_client()) == undisturbed, (kind, at, gcs.requests)
    assert len(gcs_client().list("checkpoints/")) == 2, (kind, at)


@pytest.mark.matrix
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_at_each_request_of_a_run_loses_nothing(
    gcs: GcsServer, small: Small, undisturbed: dict[str, Any], struck: list[int], kind: str
) -> None:
    """The whole matrix: a request may strike any operation, of any object."""
    for at in struck:
        check_cell(gcs, small, undisturbed, kind, at)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503 before", pytest.param("reset after", marks=pytest.mark.slow)])
def test_a_store_that_is_away_for_a_while_costs_no_progress(
    gcs: GcsServer, small: Small, whole: Whole, kind: str
) -> None:
    """Many faults in a row, in the middle of training."""
    fault = gcs.fail(kind, at=12, times=8)
    start(small(**ONE_PHASE, lease_seconds=3600), gcs_client())
    assert fault.struck == 8
    assert result_of(gcs_client()) == result_of(whole(**ONE_PHASE)[0])


@pytest.mark.slow
def test_with_bits_flipped_in_many_answers_a_run_ends_the_same(gcs: GcsServer, small: Small, whole: Whole) -> None:
    """After some starts that end with 44, perhaps; none takes itself for its successor."""
    fault = gcs.fail(FLIP, at=0, times=10_000, share=0.3)
    for _ in range(5):
        with contextlib.suppress(StorageError):
            start(small(**ONE_PHASE, lease_seconds=3600), gcs_client())
            break
    fault.share = 0
    assert fault.struck > 5
    assert result_of(gcs_client()) == result_of(whole(**ONE_PHASE)[0])


# Two attempts together


@pytest.fixture
def together(gcs: GcsServer, environment: Environment) -> Callable[..., Any]:
    """Start attempts at one run in processes of their own, some seconds apart; returns exit codes and logs."""

    def run(job_uids: list[str], *, on: str, apart_seconds: float) -> tuple[list[int], list[str], dict[str, str]]:
        places = {"storage_uri": f"gs://{BUCKET}/together"} if on == "gcs" else {}
        processes: list[subprocess.Popen[str]] = []
        for uid in job_uids:
            env = environment(job_uid=uid, lease_seconds=5, **ONE_PHASE, **places)
            processes.append(begin(env))
            time.sleep(apart_seconds)
        outputs = [process.communicate(timeout=240)[0] for process in processes]
        return [process.returncode for process in processes], outputs, env

    return run


CELLS = [
    (uids, on, apart)
    for uids in (["a", "b"], ["a", "a"], ["a", "b", "c"], ["a", "a", "a"])
    for on in ("local", "gcs")
    for apart in (0.0, 1.0, 4.0)
]
WITHOUT_MATRIX = [(["a", "b"], "gcs", 0.0)]


@pytest.mark.parametrize(
    ("uids", "on", "apart"),
    [pytest.param(*cell, marks=pytest.mark.slow if cell in WITHOUT_MATRIX else pytest.mark.matrix) for cell in CELLS],
)
def test_attempts_started_together_never_both_commit(
    together: Callable[..., Any], gcs: GcsServer, whole: Whole, uids: list[str], on: str, apart: float
) -> None:
    """One completes the run; the others name its holder, or find it done."""
    codes, outputs, env = together(uids, on=on, apart_seconds=apart)
    assert ExitCode.COMPLETE in codes, outputs
    assert set(codes) <= {ExitCode.COMPLETE, ExitCode.SUPERSEDED}, (codes, outputs)
    for code, output in zip(codes, outputs, strict=True):
        if code == ExitCode.SUPERSEDED:
            reason = json.loads(output.splitlines()[-1])["reason"]
            assert "is held by attempt" in reason or "was superseded by attempt" in reason
    assert result(env, gcs) == result(place_of(whole(**ONE_PHASE)[0]))
