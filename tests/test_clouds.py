"""Runs, data and own images in a bucket of S3 and in a container of Azure, by the commands that a user types."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.errors import ExitCode
from job.observe import events
from job.settings.settings import Settings
from job.storage import LocalStore, open_store
from tests import shapes
from tests.conftest import Recorder, job
from tests.processes import begin, wait_for
from tests.runs import result_of
from tests.servers import Azurite, Minio, StoreServer

pytestmark = pytest.mark.slow


@pytest.fixture(params=["s3", "az"])
def server(request: pytest.FixtureRequest) -> StoreServer:
    """A server with its variables in the environment."""
    found: Minio | Azurite = request.getfixturevalue({"s3": "minio", "az": "azurite"}[request.param])
    return found


def printed_by(*words: str, env: dict[str, str]) -> Any:
    """The last line of what a command prints, which is JSON."""
    done = job(*words, env=env)
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_with_everything_in_a_bucket_is_killed_and_ends_as_in_a_folder(
    server: StoreServer,
    environment: Callable[..., dict[str, str]],
    undisturbed_run: tuple[LocalStore, Recorder, Settings],
    tmp_path: Path,
) -> None:
    """Prepared data is mirrored, and fetched; questions are answered; and no secret is in what is said or kept."""
    place = f"{server.uri}/{tmp_path.name}"
    said = []
    mirrored = printed_by("mirror", "--to", f"{place}/m", env=environment())
    assert mirrored["THAW_DATA_DIR"] == f"{place}/m/tfds"
    env = environment(
        data_dir=mirrored["THAW_DATA_DIR"], storage_uri=f"{place}/runs", run_id="small", checkpoint_every_seconds=0
    )
    for phase in ("head", "fine_tune"):
        with begin(env) as process:
            wait_for(process, events.Committed.name, phase=phase)
            process.send_signal(signal.SIGKILL)
    done = job(env=env)
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    said.append(done.stdout + done.stderr)
    assert f'"event": "{events.Restored.name}"' in done.stdout
    run = f"{place}/runs/small"
    assert result_of(open_store(run)) == result_of(undisturbed_run[0])
    again = job(env=env)
    assert (again.returncode, events.RunAlreadyDone.name in again.stdout) == (ExitCode.COMPLETE, True)
    for words in (
        ["status", "--run", run, "--json"], ["list", f"{place}/runs", "--json"], ["verify", "--run", run, "--json"],
    ):  # fmt: skip
        done = job(*words, env=env)
        assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
        said.append(done.stdout)
    photo = next(path for path in shapes.write_images(tmp_path / "photos").rglob("*.png"))
    done = job("predict", "--run", run, str(photo), env=env)
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    said += [done.stdout, open_store(run).read("run.json").data.decode()]
    secrets = [value for name, value in server.environment.items() if name.endswith("_KEY")]
    assert secrets
    assert not [text for text in said for secret in secrets if secret in text]


def test_own_images_are_mirrored_into_a_bucket_and_trained_on(
    server: StoreServer, environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """As many of each class as in the folder."""
    folder = shapes.write_images(tmp_path / "photos")
    place = f"{server.uri}/{tmp_path.name}"
    mirrored = printed_by("mirror", "--to", f"{place}/m", env=environment(dataset=folder, weights="none"))
    counts = []
    for dataset in (str(folder), mirrored["THAW_DATASET"]):
        done = job("inspect", "--json", env=environment(dataset=dataset))
        assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
        counts.append(json.loads(done.stdout)["classes"])
    assert counts[0] == counts[1]
    env = environment(dataset=mirrored["THAW_DATASET"], storage_uri=f"{place}/runs", head_epochs=1, fine_tune_epochs=0)
    done = job(env=env)
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
