"""What a record may say: whatever is in it, it is a record or a damaged one, and every reader goes on."""

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from job.cli import list as list_command
from job.cli import plan, status
from job.errors import RecordDamaged
from job.observe import ledger
from job.report.gate import missed_gate
from job.report.summary import summary
from job.run.description import CheckpointName
from job.run.record import RECORD_NAME, Identity, RunRecord, encoded, read
from job.settings.settings import Settings
from job.storage import MISSING
from tests.recorded import INPUTS, NOON, attempt, checkpoint, epoch, record
from tests.stores import MemoryStore

RUN = Settings(run_id="r", head_epochs=2, fine_tune_epochs=2, batch_size=10)

PARTS: dict[str, Any] = {
    "fingerprint": RUN.fingerprint(), "settings": RUN.result_settings(), "history": (epoch("head", 0),),
    "checkpoints": (checkpoint("head", 10), checkpoint("fine_tune", 3)), "set_aside": (checkpoint("head", 4),),
    "lineages": ("0123abcd",), "files": {"model/labels.json": {"size": 3, "sha256": "0" * 64}},
}  # fmt: skip

HOLDER = {"host": "elsewhere", "pid": 7, "started": 1.0, "start_ticks": 5, "boot_id": "b", "job_name": "job"}

BUSY = attempt(seconds={"head": {"productive": 3.0}}, reached={"head": 12})

RECORDS = [
    record(**PARTS, state="done"),
    record(
        **PARTS, state="fine_tune", attempts=(BUSY,),
        lease={"attempt": 1, "holder": HOLDER, "seconds": 60.0, "renewed": NOON},
    ),
]  # fmt: skip

HOSTILE = st.one_of(
    st.sampled_from(
        [
            None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf"), "", "high",
            "0.9", "../../etc/passwd", "/etc/passwd", "checkpoints/../run.json", "\x1b[2J", "a\nb", "x" * 5000, "done",
            "head", [], {}, [None], [[]], {"a": 1}, "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
            "2026-01-01T12:00:00", 1767268800, "2026-01-01T12:00:00Z",
        ]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=4,
    ),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document, inner ones and those that hold them."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    *above, last = path
    holder = document
    for key in above:
        holder = holder[key]
    holder[last] = value
    return document


def shown(answer: Any) -> str:
    out = Console(file=StringIO(), width=200)
    out.print(answer)
    return str(out.file.getvalue())  # type: ignore[attr-defined]


def ask_every_reader(store: MemoryStore) -> str:
    """Every reader of a record that needs no TensorFlow; returns what a terminal would show."""
    seen = status.look(store)
    json.dumps(status.as_json(seen), allow_nan=False)
    found = seen.record
    seconds = [attempt.seconds for attempt in found.attempts]
    json.dumps([ledger.by_stage(seconds), ledger.by_category(seconds), ledger.goodput(seconds)], allow_nan=False)
    if found.outcome is not None:
        outcome = found.outcome.model_dump(mode="json")
        missed_gate(outcome, {"test_accuracy": 0.5})
        summary(outcome, "here", {})
        f"{found.attempts[-1].end:%FT%TZ}"
    assert RunRecord.open(store, Identity(run_id="r", fingerprint=found.fingerprint, settings={})).version
    step, _ = plan.what_next(RUN, store)
    assert step.action != "unknown"
    return shown(status.as_table(seen)) + shown(step.text)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_is_in_a_record_its_readers_answer_or_call_it_damaged(data: st.DataObject) -> None:
    """Any value at any place; `list` has a row for it in each case."""
    document = json.loads(data.draw(st.sampled_from(RECORDS)).model_dump_json())
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places(document)))
        document = put(document, path, copy.deepcopy(data.draw(HOSTILE)))
    store = MemoryStore()
    text = json.dumps(document).encode()
    store.write(RECORD_NAME, text, if_version=MISSING)
    store.write(f"r/{RECORD_NAME}", text, if_version=MISSING)
    problem = ""
    try:
        assert "\x1b" not in ask_every_reader(store)
    except RecordDamaged as error:
        problem = error.message
    assert problem.isprintable()
    (row,) = list_command.find(store, now=datetime.now(UTC))
    json.dumps(row, allow_nan=False)
    assert "\x1b" not in shown(list_command.as_table([row]))
    # A row is of a folder, whose name the record must have too.
    assert (row["condition"] == "damaged") == (bool(problem) or document.get("run_id") != "r")


@pytest.mark.parametrize("content", RECORDS, ids=["done", "running"])
def test_the_records_that_are_altered_here_are_good(content: Any) -> None:
    """What is written is read as it was."""
    store = MemoryStore()
    store.write(RECORD_NAME, encoded(content), if_version=MISSING)
    assert read(store) == content
    assert ask_every_reader(store)


Change = Callable[[dict[str, Any]], Any]

WRONG: dict[str, Change] = {
    "an accuracy that is text": lambda r: r["outcome"].update(test_accuracy="0.9"),
    "an accuracy above 1": lambda r: r["outcome"].update(test_accuracy=1.01),
    "done without an attempt": lambda r: r.update(attempts=[]),
    "done without an end": lambda r: r["attempts"][0].update(end=None),
    "done without an outcome": lambda r: r.update(outcome=None),
    "an outcome that is not done": lambda r: r.update(state="export"),
    "attempts that are not numbered": lambda r: r["attempts"][0].update(number=2),
    "a lease of another attempt": lambda r: r.update(lease={"attempt": 2, "holder": HOLDER, "seconds": 1}),
    "a pid that is none": lambda r: r.update(lease={"attempt": 1, "holder": HOLDER | {"pid": -1}, "seconds": 1}),
    "a lease for ever": lambda r: r.update(lease={"attempt": 1, "holder": HOLDER, "seconds": 1e308}),
    "a checkpoint elsewhere": lambda r: r["checkpoints"][0].update(name="checkpoints/../../etc/passwd"),
    "a checkpoint of the model": lambda r: r["checkpoints"][0].update(name="model/model.keras"),
    "a checkpoint beyond the phase": lambda r: r["checkpoints"][0].update(step=21),
    "a checkpoint of no phase": lambda r: r["settings"].update(HEAD_EPOCHS=0),
    "more epochs than the history": lambda r: r["checkpoints"][0].update(num_epochs=2),
    "a moment without a zone": lambda r: r["attempts"][0].update(start="2026-01-01T12:00:00"),
    "a holder that moves the cursor": lambda r: r["attempts"][0].update(holder="\x1b[2J"),
    "a file outside": lambda r: r["files"].update({"../x": {"size": 1, "sha256": "0" * 64}}),
    "a field that is not known": lambda r: r.update(more=1),
    "a way to resize that is none": lambda r: r["settings"].update(RESIZE=["crop"]),
    "splits that are text": lambda r: r["inputs"]["data"].update(splits="many"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=list(WRONG))
def test_a_wrong_value_is_damage(change: Change) -> None:
    """Each of these once ended a reader with a traceback, or was believed."""
    document = json.loads(RECORDS[0].model_dump_json())
    change(document)
    store = MemoryStore()
    store.write(RECORD_NAME, json.dumps(document).encode(), if_version=MISSING)
    with pytest.raises(RecordDamaged):
        read(store)


def test_inputs_may_say_more_than_this_version_knows() -> None:
    """Only what a reader uses is checked."""
    inputs = copy.deepcopy(INPUTS)
    inputs["data"]["labels_sha256"] = "0" * 64
    assert record(inputs=inputs).inputs == inputs


@pytest.mark.parametrize(
    "name",
    [
        CheckpointName("head", 3, 1, 1, "0123abcd"), CheckpointName("fine_tune", 123_456_789, 12, 3, "456789ef"),
    ],
)  # fmt: skip
def test_the_name_of_a_checkpoint_is_read_as_it_was_written(name: CheckpointName) -> None:
    """Of any length."""
    assert CheckpointName.parse(str(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/notes.txt", "head-00000001-a1-1.safetensors", "checkpoints/head-1-a1-1.safetensors",
        "checkpoints/head-00000001-a1-1-XYZ.safetensors", f"checkpoints/head-{'9' * 5000}-a1-1.safetensors",
        "checkpoints/x/head-00000001-a1-1.safetensors", "checkpoints/head-00000001-a1-1.safetensors\n",
    ],
)  # fmt: skip
def test_a_name_that_is_not_ours_is_none(name: str) -> None:
    """The program neither sorts nor deletes by it."""
    assert CheckpointName.parse(name) is None


def test_later_in_the_training_is_later() -> None:
    """Whatever the letters say: the head comes before fine-tuning."""
    names = [
        CheckpointName("head", 9, 1, 1, ""), CheckpointName("fine_tune", 1, 1, 2, ""),
        CheckpointName("fine_tune", 1, 2, 1, ""),
    ]  # fmt: skip
    assert sorted(names, key=lambda name: name.position(("head", "fine_tune"))) == names
