"""A store of data or weights that does not answer: it is said, and a stop ends the wait."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.data.input_store import open_input
from job.data.mirror import Fetcher
from job.errors import Interrupted
from job.observe.events import WaitingForStore
from job.storage import LocalStore
from tests.conftest import Recorder
from tests.ports import free_port
from tests.runs import Small, start

URI = "gs://bucket/runs/small"


@pytest.fixture
def stopped_when_told(monkeypatch: pytest.MonkeyPatch) -> tuple[Recorder, Callable[[], None]]:
    """An observer, and a stop that comes once it has heard that a store is waited for; none answers."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("job.storage.retrying.REPORT_AFTER_SECONDS", 0.0)
    recorder = Recorder()

    def check_stop() -> None:
        if recorder.of(WaitingForStore):
            raise Interrupted("now")

    return recorder, check_stop


Told = tuple[Recorder, Callable[[], None]]


def test_the_wait_for_a_store_ends_with_a_stop(stopped_when_told: Told) -> None:
    recorder, check_stop = stopped_when_told
    with pytest.raises(Interrupted):
        open_input(URI, observer=recorder, check_stop=check_stop).version("x")


@pytest.mark.parametrize(
    "places", [{"weights": "gs://bucket/x.h5"}, {"data_dir": "gs://bucket/tfds"}, {"dataset": "gs://bucket/photos"}]
)
def test_so_does_that_for_what_is_fetched(stopped_when_told: Told, tmp_path: Path, places: dict[str, Any]) -> None:
    recorder, check_stop = stopped_when_told
    fetcher = Fetcher(tmp_path, scratch=tmp_path, observer=recorder, check_stop=check_stop)
    with pytest.raises(Interrupted):
        fetcher.inputs(**({"dataset": "two_shapes", "data_dir": None, "weights": "none"} | places))


def test_and_that_for_the_run_that_another_begins_with(
    stopped_when_told: Told, small: Small, store: LocalStore
) -> None:
    recorder, check_stop = stopped_when_told
    with pytest.raises(Interrupted):
        start(small(weights=URI), store, observer=recorder, check_stop=check_stop)
