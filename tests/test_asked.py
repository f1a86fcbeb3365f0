"""A question about a place that does not answer says so, and not only at the end."""

import pytest

from job.cli.asked import WaitWarnings
from job.errors import ObjectMissing, StorageError
from job.storage.retrying import RetryingStore
from tests.test_retrying import Remote


def test_a_store_that_does_not_answer_is_reported_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output has the answer alone, which may be JSON."""
    monkeypatch.setattr("job.storage.retrying.REPORT_AFTER_SECONDS", 0.0)
    remote = Remote(*[StorageError("cannot read gs://b/run.json: no route")] * 3)
    store = RetryingStore(remote, observer=WaitWarnings(), pause=lambda seconds: None)  # type: ignore[arg-type]
    with pytest.raises(ObjectMissing):
        store.read("run.json")
    assert capsys.readouterr() == (
        "", "warning: cannot read gs://b/run.json: no route; tried again, for at most 2 min\n"
    )  # fmt: skip
