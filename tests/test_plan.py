"""What a start would do, told without starting; the exit code is that of the start."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.cli import plan as plan_command
from job.cli.arguments import Plan
from job.errors import ExitCode, Interrupted
from job.observe.events import Restored
from job.run.holder import this_process
from job.run.lease import claim
from job.run.record import RECORD_NAME
from job.schema import Holder
from job.settings import machine
from job.settings.environment import Origin
from job.settings.settings import Settings
from job.storage import LocalStore, ObjectStore, probe
from tests.conftest import REPOSITORY, job
from tests.gcs_server import BUCKET, GcsServer
from tests.runs import StopAtStep, Undisturbed, record_of, start
from tests.test_end_to_end import Environment

Small = Callable[..., Settings]
Ask = Callable[[Settings], dict[str, Any]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """The plan as JSON, whose exit code is the one that is returned."""

    def ask_of(settings: Settings) -> dict[str, Any]:
        origins: dict[str, Origin] = dict.fromkeys(Settings.model_fields, "default")
        code = plan_command.plan(Plan(settings, origins, as_json=True))
        answer = json.loads(capsys.readouterr().out)
        assert answer["exit_code"] == int(code)
        return dict(answer)

    return ask_of


def outcomes(answer: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["outcome"] for check in answer["checks"]}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_would_start_and_nothing_is_left(ask: Ask, small: Small, tmp_path: Path) -> None:
    """Not even a folder."""
    answer = ask(small())
    assert (answer["next"]["action"], answer["exit_code"]) == ("start", ExitCode.COMPLETE)
    assert answer["next"]["text"] == "start attempt 1 with the first step of head"
    assert set(outcomes(answer).values()) == {"ok"}
    (data,) = [check for check in answer["checks"] if check["name"] == "data"]
    assert data["facts"]["examples"] == {"train": 40, "validation": 16, "test": 24}
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_run_would_carry_on_where_it_stopped(ask: Ask, small: Small, tmp_path: Path) -> None:
    """With phase and step; the folder of the run is as it was, and the start does what was said."""
    settings = small()
    store = LocalStore(tmp_path / "runs/small")
    reader = StopAtStep("head", 4)
    with pytest.raises(Interrupted):
        start(settings, store, observer=reader, check_stop=reader.check_stop)
    before = files(store.root)
    answer = ask(settings)
    entry = record_of(store).checkpoints[-1]
    assert (answer["next"]["action"], answer["exit_code"]) == ("resume", 0)
    assert answer["next"]["text"] == f"carry on with attempt 2 at head step {entry.step} of 6, from {entry.name}"
    assert files(store.root) == before
    (restored,) = start(settings, store).of(Restored)
    assert (restored.phase, restored.step) == ("head", entry.step)
    assert 0 < entry.step < 6


def at(undisturbed_run: Undisturbed, **changes: Any) -> Settings:
    store, _, settings = undisturbed_run
    return settings.model_copy(update={"storage_uri": str(store.root.parent)} | changes)


def test_a_finished_run_has_nothing_left_to_do(ask: Ask, undisturbed_run: Undisturbed) -> None:
    """A start would end with 0 at once, so the plan does; what a start would not need is not looked at."""
    answer = ask(at(undisturbed_run, data_dir="/nothing"))
    assert (answer["next"]["action"], answer["exit_code"], answer["checks"]) == ("nothing", 0, [])
    assert "the run is complete, with a test accuracy of" in answer["next"]["text"]


@pytest.mark.parametrize(("gate", "code"), [(0.4, ExitCode.COMPLETE), (0.6, ExitCode.QUALITY_GATE)])
def test_a_finished_run_below_the_gate_ends_with_6(
    ask: Ask, undisturbed_run: Undisturbed, tmp_path: Path, gate: float, code: ExitCode
) -> None:
    """As a start of it does."""
    record = record_of(undisturbed_run[0])
    assert record.outcome is not None
    record = record.model_copy(update={"outcome": record.outcome.model_copy(update={"test_accuracy": 0.5})})
    LocalStore(tmp_path / "small").write(RECORD_NAME, record.model_dump_json().encode(), if_generation=0)
    answer = ask(at(undisturbed_run, storage_uri=str(tmp_path), min_test_accuracy=gate))
    assert (answer["next"]["action"], answer["exit_code"]) == ("nothing", code)


def test_other_settings_are_refused_with_each_difference(ask: Ask, undisturbed_run: Undisturbed) -> None:
    """With exit code 3."""
    answer = ask(at(undisturbed_run, dropout=0.5))
    assert (answer["next"]["action"], answer["exit_code"]) == ("refused", ExitCode.RUN_MISMATCH)
    assert "THAW_DROPOUT: the run has 0.2, this start 0.5" in answer["next"]["text"]


def held(settings: Settings, store: ObjectStore, holder: Holder) -> None:
    claim(
        store, run_id="small", fingerprint=settings.fingerprint(), settings=settings.result_settings(), holder=holder,
        lease_seconds=60,
    )  # fmt: skip


def test_a_run_that_is_held_by_a_living_process_is_waited_for(ask: Ask, small: Small, tmp_path: Path) -> None:
    """Its holder is named; exit code 43, which a start would end with if the holder went on."""
    settings = small()
    store = LocalStore(tmp_path / "runs/small")
    held(settings, store, this_process(None))
    answer = ask(settings)
    assert (answer["next"]["action"], answer["exit_code"]) == ("wait", ExitCode.SUPERSEDED)
    assert f"wait for attempt 1 of {this_process(None)}, which holds the run" in answer["next"]["text"]
    assert len(record_of(store).attempts) == 1


def test_a_holder_of_which_nothing_is_known_would_be_watched(ask: Ask, small: Small, tmp_path: Path) -> None:
    """A folder has no clock: whether the holder is alive only a start finds out, so the exit code is 0."""
    settings = small()
    held(settings, LocalStore(tmp_path / "runs/small"), Holder(host="elsewhere", pid=7, started=0.0))
    answer = ask(settings)
    assert (answer["next"]["action"], answer["exit_code"]) == ("wait", ExitCode.COMPLETE)
    assert "wait for attempt 1 of elsewhere:7, up to 1 min, and take the run over" in answer["next"]["text"]


@pytest.mark.parametrize(
    ("changes", "check", "expected", "code"),
    [
        ({"storage_uri": "/proc/thaw"}, "storage", "/proc", ExitCode.STORAGE_UNAVAILABLE),
        ({"dataset": "no_such_data"}, "data", "there is no data set 'no_such_data'", ExitCode.BAD_INPUT),
        ({"train_split": "train[:4000]"}, "data", "has train (96)", ExitCode.INVALID_SETTINGS),
        ({"test_split": "test"}, "data", "THAW_TEST_SPLIT='test'", ExitCode.INVALID_SETTINGS),
        ({"test_split": "train[55:80]"}, "data", "overlaps THAW_VALIDATION_SPLIT", ExitCode.INVALID_SETTINGS),
        ({"weights": "/nothing.h5"}, "weights", "there is no such file", ExitCode.BAD_INPUT),
    ],
)
def test_what_is_in_the_way_is_told(
    ask: Ask, small: Small, changes: dict[str, str], check: str, expected: str, code: ExitCode
) -> None:
    """By the exit code that a start would end with; the other checks go on."""
    settings = small(run_id="new").model_copy(update=changes)
    answer = ask(settings)
    (found,) = [entry for entry in answer["checks"] if entry["name"] == check]
    assert (found["outcome"], found["exit_code"], answer["exit_code"]) == ("failed", code, code)
    assert expected in found["text"]
    assert outcomes(answer)["device"] == "ok"


def test_what_does_not_fit_is_a_warning(ask: Ask, small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate stops nobody: the exit code stays 0."""
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: 10_000_000)
    monkeypatch.setattr(machine, "free_disk_bytes", lambda place: 1000)
    answer = ask(small())
    assert {name for name, outcome in outcomes(answer).items() if outcome == "warning"} == {
        "memory", "scratch disk", "storage disk"
    }  # fmt: skip
    assert answer["exit_code"] == 0


def test_a_damaged_record_is_told(ask: Ask, small: Small, tmp_path: Path) -> None:
    """With the exit code of a start, which is not tried again, and how it is mended."""
    LocalStore(tmp_path / "runs/small").write(RECORD_NAME, b"{", if_generation=0)
    answer = ask(small())
    assert (answer["next"]["action"], answer["exit_code"]) == ("refused", ExitCode.BAD_INPUT)
    assert "is not a record of this run" in answer["next"]["text"]
    assert "python -m job repair" in answer["next"]["hint"]


def test_data_and_weights_in_a_mirror_are_found(ask: Ask, small: Small, gcs: GcsServer, prepared: Path) -> None:
    """By their names alone; the probe of the store leaves nothing there."""
    for path in (prepared / "two_shapes").rglob("*"):
        if path.is_file():
            gcs.put(f"mirror/tfds/{path.relative_to(prepared).as_posix()}", path.read_bytes(), None)
    gcs.put("mirror/weights/tiny.weights.h5", b"weights", None)
    before = set(gcs.objects)
    mirror = f"gs://{BUCKET}/mirror"
    settings = small(data_dir=f"{mirror}/tfds", storage_uri=f"gs://{BUCKET}/runs")
    answer = ask(settings.model_copy(update={"weights": f"{mirror}/weights/tiny.weights.h5"}))
    assert set(outcomes(answer).values()) == {"ok"}
    assert answer["exit_code"] == 0
    assert set(gcs.objects) == before
    assert any(kind == "delete" and name.startswith("runs/small/.thaw-probe-") for kind, name in gcs.requests)
    answer = ask(settings.model_copy(update={"weights": f"{mirror}/weights/nothing.h5"}))
    assert outcomes(answer)["weights"] == "failed"


def test_a_mirror_is_judged_where_only_the_cache_folder_can_be_written(
    ask: Ask, small: Small, gcs: GcsServer, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod has a read-only root, and no other folder for temporary files."""
    for path in (prepared / "two_shapes").rglob("*"):
        if path.is_file():
            gcs.put(f"mirror/{path.relative_to(prepared).as_posix()}", path.read_bytes(), None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    assert outcomes(ask(small(data_dir=f"gs://{BUCKET}/mirror")))["data"] == "ok"


def test_a_bucket_that_may_not_be_written_is_told(ask: Ask, small: Small, gcs: GcsServer) -> None:
    """With the permissions that are missing."""
    gcs.fail("403", at=0, times=100, operation="write")
    answer = ask(small(storage_uri=f"gs://{BUCKET}/runs"))
    assert (outcomes(answer)["storage"], answer["exit_code"]) == ("failed", ExitCode.STORAGE_UNAVAILABLE)


def test_a_probe_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens between create and delete."""

    def interrupted(self: LocalStore, name: str) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalStore, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe(LocalStore(tmp_path / "runs/a"))
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_prepared_data_imports_no_tensorflow(environment: Environment) -> None:
    """A table for a person, with where each setting came from."""
    program = (
        "import sys; from job.__main__ import main; code = main(['plan', '--seed', '3']); "
        "sys.exit(99 if 'tensorflow' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith("THAW_")}
    assert rows["THAW_SEED"] == ["THAW_SEED", "*", "3", "flag"]
    assert rows["THAW_BATCH_SIZE"][-1] == "environment"
    assert rows["THAW_DROPOUT"] == ["THAW_DROPOUT", "*", "0.2", "default"]
    assert "start attempt 1 with the first step of head" in done.stdout


def test_a_plan_and_a_start_agree_on_wrong_settings(environment: Environment) -> None:
    """Both end with 2, with the same problems."""
    env = environment(batch_size=0)
    plan, run = job("plan", env=env), job(env=env)
    assert plan.returncode == run.returncode == ExitCode.INVALID_SETTINGS
    assert plan.stderr.splitlines()[:2] == run.stderr.splitlines()[:2]


def test_memory_is_what_the_control_group_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container; `max` is no limit."""
    limit, used = tmp_path / "max", tmp_path / "current"
    used.write_text("1000\n")
    monkeypatch.setattr(machine, "_CGROUPS", ((limit, used),))
    limit.write_text("5000\n")
    assert machine.available_memory_bytes() == 4000
    limit.write_text("max\n")
    assert machine.available_memory_bytes() > 4000


def test_accelerators_are_named_by_their_driver(tmp_path: Path) -> None:
    """Without one there are none."""
    assert machine.accelerators(tmp_path) == []
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0/information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 1\n")
    assert machine.accelerators(tmp_path) == ["NVIDIA H100 80GB HBM3"]


def test_the_disk_of_a_folder_that_is_not_there_is_that_of_the_one_above(tmp_path: Path) -> None:
    """The folder is made by the start."""
    assert machine.free_disk_bytes(tmp_path / "a/b/c") > 0
