"""A cleared environment for each test, small prepared data, and a run of a few seconds."""

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from job.__main__ import set_up_tensorflow
from job.imports import without_garbage_collection
from job.observe.events import Event, StepDone
from job.observe.observer import RunningMeans
from job.settings.environment import NOT_SETTINGS
from job.settings.fields import PREFIX
from job.settings.settings import Settings
from job.storage import LocalStore
from job.storage.retrying import RetryingStore
from tests.gcs_server import GcsServer
from tests.once import folders, made_once
from tests.servers import Azurite, Minio

if TYPE_CHECKING:
    from job.data.splits import DataRequest, Splits

set_up_tensorflow(log_level="2")  # TensorFlow warns of each error that a test provokes
REPOSITORY = Path(__file__).parent.parent
AnEvent = TypeVar("AnEvent", bound=Event)

SMALL_RUN: dict[str, Any] = {
    "dataset": "two_shapes",
    "train_split": "train[:40]",
    "validation_split": "train[40:56]",
    "test_split": "train[56:80]",
    "image_size": 16,
    "batch_size": 16,
    "backbone": "Tiny",
    "weights": "none",
    "head_epochs": 2,
    "fine_tune_epochs": 2,
    "head_learning_rate": 1e-2,
    "fine_tune_learning_rate": 1e-3,
    "precision": "float32",
    "metrics_port": 0,
    "deterministic": True,
    "run_id": "small",
}
"""Three batches an epoch, the last of 8: partial batches are always in play."""


CALIBRATED_RUN: dict[str, Any] = SMALL_RUN | {
    "head_epochs": 5,
    "fine_tune_epochs": 0,
    "calibrate": True,
    "threshold": "auto",
}


def slowly(*cases: Any) -> list[Any]:
    """Cases of a parametrized test that only `make test-all` runs. A tuple is the values of several parameters."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What the tests import stays to the end."""
    with without_garbage_collection():
        return (yield)


@pytest.fixture(autouse=True)
def _cleared_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        if name not in NOT_SETTINGS:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _folder_of_all_processes(tmp_path_factory: pytest.TempPathFactory) -> None:
    own = tmp_path_factory.getbasetemp()
    folders.append(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture(scope="session")
def prepared() -> Path:
    """A TFDS data_dir with the data sets of tests/shapes.py, prepared."""

    def prepare(folder: Path) -> None:
        from tests import shapes

        for builder in (shapes.TwoShapes, shapes.ThreeShapes, shapes.DamagedShapes):
            builder(data_dir=folder / "tfds").download_and_prepare()

    return made_once("prepared", prepare)[0] / "tfds"


@pytest.fixture(scope="session")
def prepared_as(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The same data in a format of files, by its name."""
    from tests import shapes

    @functools.cache
    def prepare(file_format: str) -> Path:
        if file_format == "tfrecord":
            return prepared
        folder = tmp_path_factory.mktemp(file_format)
        for builder in (shapes.TwoShapes, shapes.DamagedShapes):
            builder(data_dir=folder, file_format=file_format).download_and_prepare()
        return folder

    return prepare


@pytest.fixture
def load_and_close() -> "Iterator[Callable[..., Splits]]":
    """`load_splits`, whose thread ends with the test."""
    from job.data.splits import load_splits
    from tests.runs import never

    with contextlib.ExitStack() as stack:

        def load(request: "DataRequest", **options: Any) -> "Splits":
            splits = load_splits(request, **({"check_stop": never} | options))
            stack.callback(splits.close)
            return splits

        yield load


@pytest.fixture
def splits(prepared: Path, load_and_close: "Callable[..., Splits]") -> "Splits":
    """Of `tests.shapes`: 40 training images."""
    from tests import shapes

    return load_and_close(shapes.request(prepared))


@pytest.fixture(scope="session")
def _deterministic() -> None:
    """TensorFlow's operations are so from here on, to the end of the process."""
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


@pytest.fixture
def small(prepared: Path, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a small run over a store in `tmp_path`; keywords override."""

    def make(**overrides: Any) -> Settings:
        places = {"data_dir": str(prepared), "storage_uri": str(tmp_path / "runs"), "cache_dir": tmp_path / "cache"}
        return Settings(**(SMALL_RUN | places | overrides))

    return make


@pytest.fixture(scope="session")
def whole(prepared: Path) -> "Callable[..., tuple[LocalStore, Recorder, Settings]]":
    """The small run, never interrupted; keywords override. The same ones are one run, which tests only read."""
    from tests.runs import start

    @functools.cache
    def run(**overrides: Any) -> "tuple[LocalStore, Recorder, Settings]":
        def store_and_settings(folder: Path) -> tuple[LocalStore, Settings]:
            values = SMALL_RUN | {"data_dir": str(prepared), "cache_dir": folder / "cache"} | overrides
            return LocalStore(folder / "small"), Settings(**values)

        def make(folder: Path) -> Recorder:
            store, settings = store_and_settings(folder)
            recorder: Recorder = start(settings, store)
            return recorder

        key = hashlib.sha256(repr(sorted(overrides.items())).encode()).hexdigest()[:12]
        folder, recorder = made_once(f"whole-{key}", make)
        store, settings = store_and_settings(folder)
        return store, recorder, settings

    return run


@pytest.fixture(scope="session")
def undisturbed_run(whole: Callable[..., Any]) -> "tuple[LocalStore, Recorder, Settings]":
    """The small run as it is, never interrupted."""
    run: tuple[LocalStore, Recorder, Settings] = whole()
    return run


@pytest.fixture(scope="session")
def calibrated_run(whole: Callable[..., Any]) -> LocalStore:
    """A run that answers with a temperature and a threshold other than 1 and 0.5; it makes some mistakes."""
    store: LocalStore = whole(**CALIBRATED_RUN)[0]
    return store


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "run")


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    """A server of Cloud Storage, for every process that the tests start."""
    with GcsServer(stall_seconds=1.0) as server:
        yield server


@pytest.fixture
def gcs(gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> GcsServer:
    """The same, empty and without faults."""
    gcs_server.clear()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
    return gcs_server


@pytest.fixture
def gcs_store(gcs: GcsServer) -> RetryingStore:
    from tests.stores import gcs_client

    return gcs_client()


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    """A server of S3, for every process that the tests start."""
    with Minio(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """A server of Azure Blob Storage, for every process that the tests start."""
    with Azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def minio(minio_server: Minio, monkeypatch: pytest.MonkeyPatch) -> Minio:
    """The same, with its variables in the environment."""
    return minio_server.use(monkeypatch)


@pytest.fixture
def azurite(azurite_server: Azurite, monkeypatch: pytest.MonkeyPatch) -> Azurite:
    """The same, with its variables in the environment."""
    return azurite_server.use(monkeypatch)


@pytest.fixture
def copied(undisturbed_run: "tuple[LocalStore, Recorder, Settings]", tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(undisturbed_run[0].root, tmp_path / "small"))


@pytest.fixture
def environment(prepared: Path, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The environment of a small run in a process of its own; keywords override."""

    def make(**overrides: Any) -> dict[str, str]:
        places = {"data_dir": str(prepared), "storage_uri": str(tmp_path / "runs"), "cache_dir": str(tmp_path)}
        values = SMALL_RUN | places | overrides
        return process_environment(values)

    return make


@pytest.fixture(scope="session")
def undisturbed_process(prepared: Path) -> dict[str, str]:
    """The environment of the small run, which has run in one go in a process; its log is kept beside it."""

    def environment(folder: Path) -> dict[str, str]:
        return process_environment(SMALL_RUN | {"data_dir": prepared, "storage_uri": folder})

    def run(folder: Path) -> None:
        done = job(env=environment(folder))
        assert done.returncode == 0, done.stderr
        (folder / "stdout").write_text(done.stdout)
        (folder / "stderr").write_text(done.stderr)

    return environment(made_once("undisturbed-process", run)[0])


def process_environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """This process's environment with these settings, and no others."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "TF_CPP_"))}
    return clean | {f"{PREFIX}{name.upper()}": str(value) for name, value in settings.items()}


def job(*argv: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "job", *argv], env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=240
    )


class Recorder:
    """An observer that keeps the events of a run, and the title of the table at its end."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.steps: list[StepDone] = []
        self.title = ""

    def event(self, event: Event) -> None:
        self.events.append(event)

    def step(self, done: StepDone, running_means: RunningMeans) -> None:
        self.steps.append(done)

    def closing(self, title: str, rows: dict[str, str]) -> None:
        self.title = title

    def kinds(self) -> list[type[Event]]:
        return [type(event) for event in self.events]

    def of(self, kind: type[AnEvent]) -> list[AnEvent]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs and weights."""
    place = os.environ.get("THAW_TEST_DATA")
    if not place:
        pytest.skip("THAW_TEST_DATA names no folder of real photographs and weights")
    return Path(place)
