"""Every object of a run against its record: what is missing, damaged or not named, in a folder and in a bucket."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.cli.verify import Options, answer, look
from job.data import image_table
from job.errors import ExitCode, RunUnavailable
from job.observe.events import Committed
from job.schema import CheckpointEntry
from job.storage import MISSING, LocalStore, ObjectStore, open_store
from tests.conftest import job
from tests.gcs_server import BUCKET, GcsServer
from tests.runs import CrashOn, Small, Undisturbed, record_of, start
from tests.stores import Crash


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[[str | Path], tuple[int, dict[str, str], Any]]:
    """Exit code, the condition of each object, and the whole answer."""

    def ask_of(run: str | Path) -> tuple[int, dict[str, str], Any]:
        code = answer(Options(run=str(run), cache_dir=tmp_path / "cache", as_json=True))
        found = json.loads(capsys.readouterr().out)
        assert found["exit_code"] == code
        return int(code), {each["name"]: each["condition"] for each in found["objects"]}, found

    return ask_of


def test_every_object_but_the_record_is_read_and_named(ask: Callable[..., Any], undisturbed_run: Undisturbed) -> None:
    """Of a whole run."""
    store, _, _ = undisturbed_run
    code, found, shown = ask(store.uri)
    assert (code, found) == (ExitCode.COMPLETE, dict.fromkeys(set(store.list("")) - {"run.json"}, "ok"))
    assert shown["summary"] == f"{len(found)} ok"


@pytest.mark.parametrize("name", ["model/model.keras", "report/index.html", "logs/history.json", "checkpoint"])
def test_what_is_missing_or_damaged_is_named(ask: Callable[..., Any], copied: Path, name: str) -> None:
    """One byte is enough, of any kind of object; the others are still ok."""
    path = copied / name if name != "checkpoint" else next((copied / "checkpoints").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for condition in ("damaged", "missing"):
        code, found, _ = ask(copied)
        faults = {other: each for other, each in found.items() if each != "ok"}
        assert (code, faults) == (4, {path.relative_to(copied).as_posix(): condition})
        path.unlink(missing_ok=True)


def test_the_table_of_own_images_is_the_runs(ask: Callable[..., Any], copied: Path) -> None:
    """The record names it among what the run was made from."""
    table = b"name,split,label,sha256\n"
    name = image_table.name_of(table)
    record = json.loads((copied / "run.json").read_text())
    record["inputs"]["images"] = name
    (copied / "run.json").write_text(json.dumps(record))
    (copied / name).parent.mkdir()
    (copied / name).mkdir()
    code, found, _ = ask(copied)
    assert (code, found[name]) == (4, "damaged")
    (copied / name).rmdir()
    for content, expected in ((table, (0, "ok")), (table + b"a", (4, "damaged")), (None, (4, "missing"))):
        (copied / name).unlink(missing_ok=True) if content is None else (copied / name).write_bytes(content)
        code, found, _ = ask(copied)
        assert (code, found[name]) == expected


def test_only_a_stranger_beside_the_files_of_the_run_is_a_fault(ask: Callable[..., Any], copied: Path) -> None:
    """It may be taken for the run's. Nothing reads a checkpoint that is left over, or was set aside."""
    left, record = "checkpoints/head-00000001-a1-9.safetensors", json.loads((copied / "run.json").read_text())
    (copied / left).write_bytes(b"left")
    record["set_aside"] = [record["checkpoints"].pop(0)]
    (copied / "run.json").write_text(json.dumps(record))
    code, found, _ = ask(copied)
    assert (code, found[left], found[record["set_aside"][0]["name"]]) == (0, "left over", "set aside")
    (copied / "model/extra.bin").write_bytes(b"?")
    code, found, _ = ask(copied)
    assert (code, found["model/extra.bin"]) == (4, "not named")


def test_a_finished_run_without_digests_does_not_pass(ask: Callable[..., Any], copied: Path) -> None:
    """Nothing says that its model is the one that was written."""
    record = json.loads((copied / "run.json").read_text()) | {"files": {}}
    (copied / "run.json").write_text(json.dumps(record))
    code, found, _ = ask(copied)
    assert (code, found["model/model.keras"]) == (4, "not named")


@pytest.mark.slow
def test_a_run_that_is_not_done_is_looked_at_as_it_is(ask: Callable[..., Any], small: Small, tmp_path: Path) -> None:
    """Its checkpoints are verified; a run that is not there is an error."""
    store = LocalStore(tmp_path / "runs/small")
    with pytest.raises(Crash):
        start(small(head_epochs=1), store, observer=CrashOn(Committed, phase="head"))
    curve = "logs/train/events.out.tfevents.thaw"
    store.write(curve, b"", if_version=store.version(curve))
    code, found, answer = ask(store.uri)
    assert (code, answer["state"], found[curve], set(found.values())) == (0, "head", "under way", {"ok", "under way"})
    with pytest.raises(RunUnavailable, match="there is no run"):
        ask(tmp_path / "nothing")


def test_a_checkpoint_that_is_pruned_meanwhile_is_not_missing(copied: Path, tmp_path: Path) -> None:
    """What is gone is looked up again in the record of that moment."""
    store = LocalStore(copied)
    before = record_of(store)
    gone: CheckpointEntry = before.checkpoints[0]
    after = before.model_copy(update={"checkpoints": before.checkpoints[1:]})
    (copied / "run.json").write_text(after.model_dump_json())
    (copied / gone.name).unlink()
    assert {each.condition for each in look(store, before, tmp_path / "object")} == {"ok"}


@pytest.mark.slow
def test_a_run_in_a_bucket_is_verified_by_a_process(
    undisturbed_run: Undisturbed, gcs: GcsServer, copied: Path, tmp_path: Path
) -> None:
    """A table for people; what is damaged is in it."""
    store: ObjectStore = undisturbed_run[0]
    bucket = open_store(f"gs://{BUCKET}/runs/small")
    for name in store.list(""):
        bucket.upload(name, copied / name, if_version=MISSING)
    done = job("verify", "--run", bucket.uri, env=dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "")
    gcs.put("runs/small/report/report.json", b"other", None)
    done = job("verify", "--run", bucket.uri, env=dict(os.environ))
    assert done.returncode == ExitCode.BAD_INPUT
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("report/report.json")]
    assert "damaged" in row
