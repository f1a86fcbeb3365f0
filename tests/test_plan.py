"""What a start would do, shown without starting; the exit code is that of the start."""

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from job import nvidia
from job.cli import plan as plan_command
from job.data.files import image_files
from job.data.split_spec import DEFAULT_SPECS
from job.errors import ExitCode, Interrupted
from job.model.backbones import BACKBONES
from job.observe.events import Restored
from job.run.holder import this_process
from job.run.lease import claim
from job.run.record import RECORD_NAME, Identity, encoded, new_record
from job.schema import Attempt, Holder
from job.settings import machine
from job.settings.settings import Settings
from job.storage import MISSING, LocalStore, open_store, probe
from tests import shapes
from tests.gcs_server import BUCKET, GcsServer
from tests.processes import Environment, contents, run_without
from tests.runs import StopAtStep, Undisturbed, context, record_of, start

Small = Callable[..., Settings]
Ask = Callable[[Settings], dict[str, Any]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """The plan as JSON, whose exit code is the one that is returned."""

    def ask_of(settings: Settings) -> dict[str, Any]:
        code = plan_command.answer(plan_command.Options(settings=settings, as_json=True))
        answer = json.loads(capsys.readouterr().out)
        assert answer["exit_code"] == int(code)
        return dict(answer)

    return ask_of


def outcomes(answer: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["outcome"] for check in answer["checks"]}


def test_a_new_run_would_start_and_nothing_is_left(ask: Ask, small: Small, tmp_path: Path) -> None:
    """Not even a folder."""
    answer = ask(small())
    assert (answer["next"]["action"], answer["exit_code"]) == ("start", ExitCode.COMPLETE)
    assert answer["next"]["text"] == "start attempt 1 with the first step of head"
    assert set(outcomes(answer).values()) == {"ok"}
    (data,) = [check for check in answer["checks"] if check["name"] == "data"]
    assert data["facts"]["examples"] == {"train": 40, "validation": 16, "test": 24}
    assert list(tmp_path.iterdir()) == []


def test_a_record_in_which_nothing_trains_is_planned_by_the_settings(ask: Ask, small: Small) -> None:
    """Only others write one: with the fingerprint of these settings, and the epochs of none."""
    settings = small(head_epochs=0)
    values = {**settings.result_settings(), "FINE_TUNE_EPOCHS": 0}
    ended = Attempt(number=1, holder="other", start=datetime.now(UTC), end=datetime.now(UTC), exit_code=4)
    record = new_record(dataclasses.replace(Identity.of(settings), settings=values), attempts=(ended,))
    open_store(settings.run_uri()).write(RECORD_NAME, encoded(record), if_version=MISSING)
    assert ask(settings)["next"]["text"] == "start attempt 2 with the first step of fine_tune"


@pytest.mark.slow
def test_a_stopped_run_would_carry_on_where_it_stopped(ask: Ask, small: Small, tmp_path: Path) -> None:
    """With phase and step; the folder of the run is as it was, and the start does what was said."""
    settings = small()
    store = LocalStore(tmp_path / "runs/small")
    reader = StopAtStep("head", 4)
    with pytest.raises(Interrupted):
        start(settings, store, observer=reader, check_stop=reader.check_stop)
    before = contents(store.root)
    answer = ask(settings)
    entry = record_of(store).checkpoints[-1]
    assert (answer["next"]["action"], answer["exit_code"]) == ("resume", 0)
    assert answer["next"]["text"] == f"carry on with attempt 2 at head step {entry.step} of 6, from {entry.name}"
    assert contents(store.root) == before
    (restored,) = start(settings, store).of(Restored)
    assert (restored.phase, restored.step) == ("head", entry.step)
    assert 0 < entry.step < 6


def at(undisturbed_run: Undisturbed, **changes: Any) -> Settings:
    store, _, settings = undisturbed_run
    return settings.model_copy(update={"storage_uri": str(store.root.parent)} | changes)


def test_a_finished_run_has_nothing_left_to_do(ask: Ask, undisturbed_run: Undisturbed, tmp_path: Path) -> None:
    """0, or 6 below the gate, as a start would end at once; what it would not need is not looked at."""
    found = ask(at(undisturbed_run, data_dir="/nothing"))
    assert (found["next"]["action"], found["exit_code"], found["checks"]) == ("nothing", 0, [])
    assert "the run is complete, with a test accuracy of" in found["next"]["text"]
    content = json.loads(undisturbed_run[0].read(RECORD_NAME).data)
    content["outcome"]["test_accuracy"] = 0.5
    LocalStore(tmp_path / "small").write(RECORD_NAME, json.dumps(content).encode(), if_version=MISSING)
    for gate, code in {0.4: ExitCode.COMPLETE, 0.6: ExitCode.QUALITY_GATE}.items():
        found = ask(at(undisturbed_run, storage_uri=str(tmp_path), min_test_accuracy=gate))
        assert (found["next"]["action"], found["exit_code"]) == ("nothing", code)


def test_a_run_that_a_start_would_refuse_is_refused_in_the_same_words(
    ask: Ask, undisturbed_run: Undisturbed, small: Small, tmp_path: Path
) -> None:
    """Other settings with each difference; a damaged record with how it is mended."""
    found = ask(at(undisturbed_run, dropout=0.5))
    assert (found["next"]["action"], found["exit_code"]) == ("refused", ExitCode.RUN_MISMATCH)
    assert "THAW_DROPOUT: the run has 0.2, this start 0.5" in found["next"]["text"]
    LocalStore(tmp_path / "runs/small").write(RECORD_NAME, b"{", if_version=MISSING)
    found = ask(small())
    assert (found["next"]["action"], found["exit_code"]) == ("refused", ExitCode.BAD_INPUT)
    assert "is not a record of this run" in found["next"]["text"]
    assert "thaw repair" in found["next"]["hint"]


def test_a_run_that_another_process_holds_is_waited_for(ask: Ask, small: Small, tmp_path: Path) -> None:
    """Exit code 43 where the holder is known to be alive; otherwise a start would watch it, so the exit code is 0."""
    here, elsewhere = this_process(None), Holder(host="elsewhere", pid=7, started=0.0)
    for name, holder, code, expected in (
        ("a", here, ExitCode.SUPERSEDED, f"wait for attempt 1 of {here}, which holds the run"),
        ("b", elsewhere, ExitCode.COMPLETE, "wait for attempt 1 of elsewhere:7, up to 1 min, and take the run over"),
    ):
        settings, store = small(run_id=name), LocalStore(tmp_path / "runs" / name)
        claim(store, Identity.of(settings), holder, lease_seconds=60, context=context())
        found = ask(settings)
        assert (found["next"]["action"], found["exit_code"]) == ("wait", code)
        assert expected in found["next"]["text"]
        assert len(record_of(store).attempts) == 1


@pytest.mark.parametrize(
    ("changes", "check", "expected", "code"),
    [
        ({"storage_uri": "/proc/thaw"}, "storage", "/proc", ExitCode.STORAGE_UNAVAILABLE),
        ({"dataset": "no_such_data"}, "data", "there is no data set 'no_such_data'", ExitCode.BAD_INPUT),
        ({"dataset": "cat_vs_dogs"}, "data", "not in TFDS; did you mean cats_vs_dogs?", ExitCode.BAD_INPUT),
        ({"dataset": "drawn_cat_vs_dogs"}, "data", "did you mean drawn_cats_vs_dogs?", ExitCode.BAD_INPUT),
        ({"dataset": "two_shape:1.0.0"}, "data", "did you mean two_shapes?", ExitCode.BAD_INPUT),
        ({"train_split": "train[:4000]"}, "data", "has train (96)", ExitCode.INVALID_SETTINGS),
        ({"test_split": "test"}, "data", "THAW_TEST_SPLIT='test'", ExitCode.INVALID_SETTINGS),
        ({"test_split": "train[55:80]"}, "data", "overlaps THAW_VALIDATION_SPLIT", ExitCode.INVALID_SETTINGS),
        ({"weights": "/nothing.h5"}, "weights", "there is no such file", ExitCode.BAD_INPUT),
    ],
)
def test_what_would_stop_a_start_is_reported(
    ask: Ask, small: Small, changes: dict[str, str], check: str, expected: str, code: ExitCode
) -> None:
    """By the exit code that a start would end with; the other checks go on."""
    settings = small(run_id="new").model_copy(update=changes)
    answer = ask(settings)
    (found,) = [entry for entry in answer["checks"] if entry["name"] == check]
    assert (found["outcome"], found["exit_code"], answer["exit_code"]) == ("failed", code, code)
    assert expected in found["text"]
    assert outcomes(answer)["device"] == "ok"


def test_a_class_that_train_lacks_is_known_by_the_names_alone(ask: Ask, small: Small, tmp_path: Path) -> None:
    """Where the data brings its splits."""
    for split in ("train", "val", "test"):
        shapes.write_images(tmp_path / "own" / split, 8)
    settings = small(run_id="new", dataset=str(tmp_path / "own"), data_dir=None).model_copy(
        update=dict(zip(("train_split", "validation_split", "test_split"), DEFAULT_SPECS, strict=True))
    )
    assert ask(settings)["exit_code"] == 0
    (tmp_path / "own/val/disc").rename(tmp_path / "own/val/ring")
    answer = ask(settings)
    assert (answer["exit_code"], outcomes(answer)["data"]) == (ExitCode.BAD_INPUT, "failed")


def test_what_does_not_fit_is_a_warning(ask: Ask, small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of memory: a run may fit all the same. A disk is sure to be full, so a start would end."""
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: 10_000_000)
    answer = ask(small())
    assert (outcomes(answer)["memory"], answer["exit_code"]) == ("warning", 0)
    (memory,) = (check for check in answer["checks"] if check["name"] == "memory")
    assert "larger limit of memory, set THAW_CACHE=disk, or set THAW_MICROBATCH_SIZE=" in memory["hint"]
    monkeypatch.setattr(machine, "free_disk_bytes", lambda place: 1000)
    answer = ask(small())
    assert {name for name, outcome in outcomes(answer).items() if outcome == "failed"} == {
        "scratch disk", "storage disk"
    }  # fmt: skip
    assert answer["exit_code"] == ExitCode.BAD_INPUT


def test_who_shares_a_run_is_shown(ask: Ask, small: Small) -> None:
    """Where they meet, and a warning when this one's own host is not known here; nobody else is asked."""

    def shown(**values: Any) -> dict[str, Any]:
        answer = ask(small(run_id="new", **values))
        assert answer["exit_code"] == 0
        found: dict[str, Any] = {check["name"]: check for check in answer["checks"]}
        return found

    alone = shown()
    assert "workers" not in alone
    here = shown(devices="4")["workers"]
    assert (here["outcome"], here["text"]) == (
        "ok", "1 × 4 devices: 4 processes, with at most 4 rows of a batch each, on this machine"
    )  # fmt: skip
    hosts = "nowhere.invalid,localhost"
    both = shown(workers=2, devices="3", worker=1, worker_host=hosts)["workers"]
    assert both["outcome"] == "ok"
    assert both["text"] == (
        "2 × 3 devices: 6 processes, with at most 3 rows of a batch each; this is worker 1, worker 0 is at "
        "nowhere.invalid:2222, tensors at ports 2223 to 2228"
    )
    assert both["facts"] == {"workers": 2, "devices": 3, "hosts": hosts.split(","), "port": 2222}
    for host in ("nowhere.invalid", "x" * 70):
        found = shown(workers=2, worker=0, worker_host=f"{host},localhost")["workers"]
        assert found["outcome"] == "warning"
        assert "2 × 1 device: 2 processes, with at most 8 rows of a batch each; this is worker 0" in found["text"]
        assert f"{host} has no address here: " in found["text"]


def test_memory_and_disk_of_a_machine_are_those_of_its_processes(ask: Ask, small: Small) -> None:
    """Of each with its rows; pods on other machines take nothing here. Worker 0 alone writes the exported model."""

    def needed(name: str, **values: Any) -> int:
        (check,) = [check for check in ask(small(run_id="new", **values))["checks"] if check["name"] == name]
        return int(check["facts"]["needed_bytes"])

    assert needed("memory", devices="2") == 2 * needed("memory", workers=2, devices="1")
    assert needed("memory", workers=2, devices="1") < needed("memory")
    first, second = (needed("scratch disk", workers=2, devices="1", worker=worker) for worker in (0, 1))
    assert needed("scratch disk", devices="2") == first + second
    assert first - second == 4 * BACKBONES["Tiny"].num_parameters


def test_data_and_weights_in_a_mirror_are_found(
    ask: Ask, small: Small, gcs: GcsServer, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their names alone, with no folder for temporary files but the cache folder; nothing is left in the bucket."""
    for path in (prepared / "two_shapes").rglob("*"):
        if path.is_file():
            gcs.put(f"mirror/tfds/{path.relative_to(prepared).as_posix()}", path.read_bytes(), None)
    gcs.put("mirror/weights/tiny.weights.h5", b"weights", None)
    before = set(gcs.objects)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    mirror = f"gs://{BUCKET}/mirror"
    settings = small(data_dir=f"{mirror}/tfds", storage_uri=f"gs://{BUCKET}/runs")
    found = ask(settings.model_copy(update={"weights": f"{mirror}/weights/tiny.weights.h5"}))
    assert (set(outcomes(found).values()), found["exit_code"]) == ({"ok"}, 0)
    assert set(gcs.objects) == before
    assert any(kind == "delete" and name.startswith("runs/small/.thaw-probe-") for kind, name in gcs.requests)
    found = ask(settings.model_copy(update={"weights": f"{mirror}/weights/nothing.h5"}))
    assert outcomes(found)["weights"] == "failed"
    gcs.fail("403", at=0, times=100, operation="write")
    found = ask(settings)
    assert (outcomes(found)["storage"], found["exit_code"]) == ("failed", ExitCode.BAD_INPUT)


@pytest.mark.parametrize("name", ["pets/pets.zip", "pets"])
def test_an_archive_in_a_bucket_is_to_be_fetched(ask: Ask, small: Small, gcs: GcsServer, name: str) -> None:
    """Whether it is named, or is all that a folder has; it is not opened."""
    gcs.put("pets/pets.zip", b"zip", None)
    gcs.put("pets/notes.csv", b"a,b", None)
    answer = ask(small(dataset=f"gs://{BUCKET}/{name}", data_dir=None))
    (found,) = [check for check in answer["checks"] if check["name"] == "data"]
    assert (found["outcome"], found["text"]) == ("ok", f"to be fetched: gs://{BUCKET}/{name}")


def test_a_table_in_a_bucket_that_is_too_large_is_not_passed_over(
    ask: Ask, small: Small, gcs: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor by a start, which reads no file that is larger than an image can be."""
    for name, content in contents(shapes.write_images(tmp_path / "own", 96)).items():
        gcs.put(f"photos/{name}", content, None)
    table = b"path,label\n" + b"disc/0.png,x\n" * 100
    gcs.put("photos/labels.csv", table, None)
    settings = small(dataset=f"gs://{BUCKET}/photos", data_dir=None)
    for limit in (len(table), len(table) - 1):
        monkeypatch.setattr(image_files, "MAX_IMAGE_BYTES", limit)
        (found,) = [check for check in ask(settings)["checks"] if check["name"] == "data"]
        assert "two readings of" in found["text"]


def test_a_probe_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens between create and delete."""

    def interrupted(self: LocalStore, name: str) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalStore, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe(LocalStore(tmp_path / "runs/a"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_plan_of_prepared_data_imports_no_tensorflow(environment: Environment) -> None:
    """A table for a person: the verdict first, then what differs from the defaults, and from where."""
    rows: list[dict[str, list[str]]] = []
    for words in ([], ["--all"]):
        done = run_without("tensorflow", "plan", "--seed", "3", *words, env=environment(dropout=0.2))
        assert done.returncode == 0, done.stderr
        lines = [re.sub(" +", " ", line).strip() for line in done.stdout.splitlines()]
        assert lines[0] == "a start would start attempt 1 with the first step of head"
        assert lines[1] == "exit code 0, as of a start"
        rows.append({line.split()[0]: line.split() for line in lines if line.startswith("THAW_")})
    shown, everything = rows
    assert shown["THAW_SEED"] == everything["THAW_SEED"] == ["THAW_SEED", "*", "3", "flag"]
    assert shown["THAW_BATCH_SIZE"][-1] == "environment"
    assert shown.keys().isdisjoint({"THAW_DROPOUT", "THAW_FLIP"})
    assert everything["THAW_DROPOUT"] == ["THAW_DROPOUT", "*", "0.2", "environment"]
    assert len(everything) == len(Settings.model_fields)


def test_the_verdict_of_a_plan_is_that_of_all_it_looked_at(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody reads on below a good one: what would end a start is in the first line."""
    settings = small().model_copy(update={"dataset": "no_such_data", "weights": "/nothing.h5"})
    assert plan_command.answer(plan_command.Options(settings=settings)) == ExitCode.BAD_INPUT
    verdict, code, *_ = capsys.readouterr().out.splitlines()
    assert verdict.split(maxsplit=3)[3].strip() == (
        "end at once because of data and weights; with that mended, start attempt 1 with the first step of head"
    )
    assert code.split() == ["exit", "code", "4,", "as", "of", "a", "start"]


def test_memory_is_what_the_control_group_leaves(tmp_path: Path) -> None:
    """In a container; `max` is no limit."""
    limit, used = tmp_path / "max", tmp_path / "current"
    used.write_text("1000\n")
    limit.write_text("5000\n")
    assert machine.available_memory_bytes([(limit, used)]) == 4000
    limit.write_text("max\n")
    assert machine.available_memory_bytes([(limit, used)]) > 4000


def test_what_a_control_group_says_of_memory(tmp_path: Path) -> None:
    """Its limit, where that is less than the machine has, and how often it was reached for good."""
    limit, events = tmp_path / "max", tmp_path / "events"
    assert (machine.memory_limit_bytes([(limit, limit)]), machine.oom_kills(events)) == (None, 0)
    for text, expected in (("5000\n", 5000), ("max\n", None), ("9223372036854771712\n", None)):
        limit.write_text(text)
        assert machine.memory_limit_bytes([(limit, limit)]) == expected
    events.write_text("low 0\nhigh 0\nmax 40\noom 3\noom_kill 2\noom_group_kill 1\n")
    assert machine.oom_kills(events) == 2


def test_what_a_machine_has_is_read_without_tensorflow(tmp_path: Path) -> None:
    """Accelerators by the names of their driver; the disk of a folder that is not there is that of the one above."""
    assert nvidia.models(tmp_path) == []
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0/information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 1\n")
    assert nvidia.models(tmp_path) == ["NVIDIA H100 80GB HBM3"]
    assert machine.free_disk_bytes(tmp_path / "a/b/c") > 0
