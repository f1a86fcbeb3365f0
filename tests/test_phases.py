"""Phases of every kind in whole runs: what trains, where a phase ends, which epoch is kept, however it was stopped."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import load as load_arrays

from job.errors import Interrupted, InvalidSettings, StorageError
from job.observe import events
from job.phases import STAGES, Phase, phases_of
from job.settings.settings import Settings
from job.storage import LocalStore
from tests.classifiers import build
from tests.conftest import Recorder, slowly
from tests.runs import CrashOn, Small, StopAtStep, Undisturbed, Whole, record_of, result_of, start
from tests.stores import Crash
from tests.test_settings import read

GRADUAL = """
- {name: head, epochs: 1, learning_rate: 1e-2, unfreeze: none}
- {name: top, epochs: 1, learning_rate: 1e-3, unfreeze: "top:3", schedule: cosine, warmup_epochs: 0.5}
- {name: block, epochs: 1, learning_rate: 1e-3, unfreeze: "block:conv3"}
"""
TWO = {
    name: Settings.model_fields[name].default for name in Settings.model_fields if name.startswith(("head_", "fine_"))
}
"""The defaults, which a list of phases needs."""
IN_THREE = {"phases": GRADUAL, "keep_checkpoints": 3, **TWO}
UNSTEADY = {"head_epochs": 6, "fine_tune_epochs": 0, "head_learning_rate": 2.0, "keep": "best", "keep_checkpoints": 1}
"""A rate at which validation goes up and down."""


def stopped_and_started_again(settings: Settings, store: LocalStore, phase: str, step: int) -> None:
    """Stopped right after a step, counted from 0, and completed by a second attempt."""
    stop = StopAtStep(phase, step)
    with pytest.raises(Interrupted):
        start(settings, store, observer=stop, check_stop=stop.check_stop)
    start(settings, store)


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "step"), [("head", 1), ("top", 0), ("top", 2), ("block", 1)])
def test_three_phases_stopped_anywhere_end_the_same(
    whole: Whole, small: Small, store: LocalStore, phase: str, step: int
) -> None:
    """Schedules and unfreezing are those of the phase, whichever attempt trains it."""
    expected, _, _ = whole(**IN_THREE)
    stopped_and_started_again(small(**IN_THREE), store, phase, step)
    assert result_of(store) == result_of(expected)


@pytest.mark.slow
def test_a_phase_changes_what_it_unfreezes_and_no_more(whole: Whole) -> None:
    """By the arrays of the last checkpoint of each phase: layers that no phase has trained are not even in it."""
    store, recorder, settings = whole(**IN_THREE)
    assert [begun.phase for begun in recorder.of(events.PhaseStarted)] == ["head", "top", "block"]
    pretrained = {name: variable.numpy() for name, variable in build_as(settings).named_variables().items()}
    found = {}
    for entry in record_of(store).checkpoints:
        arrays = load_arrays(store.read(entry.name).data)
        layers = {name for name in arrays if name.startswith("backbone/")}
        found[entry.phase] = {name.split("/")[1][:3] for name in layers}
        assert all(np.isfinite(array).all() for array in arrays.values())
        for name in layers:
            is_same = np.array_equal(arrays[name], pretrained[name])
            assert is_same == ("moving" in name), (entry.phase, name)
    # Tiny has an input, then five times a convolution, a BatchNorm and an activation.
    assert found == {
        "head": set(),
        "top": {"013", "014"},
        "block": {f"{index:03d}" for index in (7, 8, 10, 11, 13, 14)},
    }


def build_as(settings: Settings) -> Any:
    return build(image_size=settings.image_size, seed=settings.seed)


@pytest.mark.parametrize(("unfreeze", "first"), [("all", 0), ("none", 16), ("top:3", 13), ("block:conv4", 10)])
def test_the_first_layer_that_trains(unfreeze: str, first: int) -> None:
    """And the parameters from there on."""
    classifier = build()
    assert classifier.first_trained(unfreeze) == first
    names = [variable.path for variable in classifier.trainable_variables(first)]
    layers = [layer for layer in classifier.backbone.layers[first:] if layer.weights]
    assert len(names) == 2 + sum(len(layer.trainable_weights) for layer in layers)
    assert classifier.num_trainable(unfreeze)["head"] == 129


@pytest.mark.parametrize("unfreeze", ["block:conf5", *slowly("top:17", "block:block14")])
def test_layers_that_are_not_there_are_refused_before_training(small: Small, store: LocalStore, unfreeze: str) -> None:
    """With the names that are meant, if there are such."""
    with pytest.raises(InvalidSettings, match=r"names no layer of Tiny, which has 16") as refused:
        start(small(unfreeze=unfreeze), store)
    assert ("conv5" in refused.value.hint) == (unfreeze == "block:conf5")
    assert record_of(store).checkpoints == ()


@pytest.mark.slow
def test_the_best_epoch_is_the_result(whole: Whole, tmp_path: Path) -> None:
    """Not the last one; its checkpoint is kept although only one is asked for, and the model is that of it."""
    store, recorder, _ = whole(**UNSTEADY)
    record = record_of(store)
    losses = [epoch.validation_loss for epoch in record.history]
    best = losses.index(min(losses))
    assert best < len(losses) - 1, f"choose other settings: {losses}"
    (restored,) = recorder.of(events.BestRestored)
    assert (restored.phase, restored.epoch, restored.validation_loss) == ("head", best, losses[best])
    kept = {(entry.step, entry.num_epochs) for entry in record.checkpoints}
    assert kept == {(record.history[best].step, best + 1), (record.history[-1].step, len(losses))}
    arrays = load_arrays(store.read(restored.checkpoint).data)
    path = tmp_path / "model.keras"
    path.write_bytes(store.read("model/model.keras").data)
    model = keras.saving.load_model(path)
    np.testing.assert_array_equal(model.get_layer("head").kernel, arrays["head/kernel"])


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 7, 12, 17])
def test_the_best_epoch_survives_a_stop(whole: Whole, small: Small, store: LocalStore, step: int) -> None:
    """Before it, after it, and at the end of the phase."""
    stopped_and_started_again(small(**UNSTEADY), store, "head", step)
    assert result_of(store) == result_of(whole(**UNSTEADY)[0])


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_trained_again(whole: Whole, small: Small, store: LocalStore) -> None:
    """The attempt that finds it says so and ends with 44; the next one comes to the same result."""
    settings = small(**UNSTEADY)
    expected, recorder, _ = whole(**UNSTEADY)
    (best,) = recorder.of(events.BestRestored)
    step = record_of(expected).history[best.epoch].step

    class Damage(Recorder):
        def event(self, event: events.Event) -> None:
            super().event(event)
            # Commits are made in the background: only this event says that the checkpoint is there.
            if isinstance(event, events.Committed) and event.step == step:
                store.write(event.checkpoint, b"nonsense", if_version=store.version(event.checkpoint))

    with pytest.raises(StorageError, match="it was the best of its phase"):
        start(settings, store, observer=Damage())
    assert record_of(store).state in ("prepare", "head")
    assert len(record_of(store).set_aside) == 1
    start(settings, store)
    assert result_of(store) == result_of(expected)


ENDS_EARLY = UNSTEADY | {"head_epochs": 20, "fine_tune_epochs": 1, "patience": 2}


@pytest.mark.slow
def test_a_phase_ends_early_and_the_next_one_begins(small: Small, store: LocalStore) -> None:
    """After as many epochs without improvement as patience says."""
    recorder = CrashOn(events.PhaseStarted, phase="fine_tune")
    with pytest.raises(Crash):
        start(small(**ENDS_EARLY), store, observer=recorder)
    (early,) = recorder.of(events.StoppedEarly)
    history = [epoch for epoch in record_of(store).history if epoch.phase == "head"]
    assert len(history) == early.best_epoch + 3 < 20
    assert early.step == history[-1].step


@pytest.mark.slow
def test_a_phase_that_has_ended_early_is_not_trained_on(whole: Whole, small: Small, store: LocalStore) -> None:
    """By an attempt after a stop that came right at its end. Without a restart: in test_schedule.py."""
    expected, recorder, _ = whole(**ENDS_EARLY)
    (early,) = recorder.of(events.StoppedEarly)
    stopped_and_started_again(small(**ENDS_EARLY), store, "head", early.step - 1)
    assert result_of(store) == result_of(expected)


def test_json_and_yaml_of_the_same_phases_are_the_same_run() -> None:
    """However they are written; a value that is the default may be left out."""
    texts = [
        '[{"name": "a", "epochs": 2, "learning_rate": 1e-3, "unfreeze": "all"}]',
        "- name: a\n  epochs: 2\n  learning_rate: 0.001\n",
        "[{learning_rate: 1.0e-3, name: a, epochs: 2}]",
    ]
    assert len({read(THAW_PHASES=text).fingerprint() for text in texts}) == 1
    (phase,) = read(THAW_PHASES=texts[0], THAW_SCHEDULE="cosine", THAW_KEEP="best").training_phases()
    assert phase == Phase(name="a", epochs=2, learning_rate=1e-3, schedule="cosine", keep="best")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[", "is neither JSON nor YAML"),
        ("3", "expected a list"),
        ("[]", "expected a list"),
        ("- {name: a, epochs: 2}", "phase 1: learning_rate: Field required"),
        ("- {name: a, epochs: 0, learning_rate: 1}", "phase 1: epochs: Input should be greater than or equal to 1"),
        ("- {name: a, epochs: 1, learning_rate: 1, rate: 2}", "phase 1: rate: Extra inputs are not permitted"),
        ("- {name: export, epochs: 1, learning_rate: 1}", "'export' is the name of another part of a run"),
        ("- {name: A, epochs: 1, learning_rate: 1}", "phase 1: name: String should match pattern"),
        ("- &a {name: a, epochs: 1, learning_rate: 1}\n- *a", "two phases have the same name"),
        ("- {name: a, epochs: 1, learning_rate: .inf}", "phase 1: learning_rate: Input should be a finite number"),
    ],
)
def test_a_wrong_list_of_phases_is_refused_with_its_row(text: str, problem: str) -> None:
    """In one message, before anything is started."""
    with pytest.raises(InvalidSettings) as refused:
        read(THAW_PHASES=text)
    assert "THAW_PHASES" in refused.value.message
    assert problem in refused.value.message


def test_no_phase_can_have_the_name_of_another_part_of_a_run(undisturbed_run: Undisturbed) -> None:
    """Their times would be one number."""
    store, _, _ = undisturbed_run
    stages = set(record_of(store).attempts[-1].seconds) - {"head", "fine_tune"}
    assert {"import", "meet", "data", "export"} <= stages <= STAGES


def test_phases_and_the_settings_of_the_two_exclude_each_other() -> None:
    """Which of them would count is not guessed."""
    with pytest.raises(InvalidSettings, match="THAW_HEAD_EPOCHS has no place"):
        read(THAW_PHASES="- {name: a, epochs: 1, learning_rate: 1}", THAW_HEAD_EPOCHS="3")


def test_the_plain_settings_are_two_phases() -> None:
    """Head with the backbone frozen, then what THAW_UNFREEZE says; a phase without epochs is left out."""
    phases = phases_of(Settings(unfreeze="top:20").result_settings())
    assert [(one.name, one.unfreeze, one.epochs, one.learning_rate) for one in phases] == [
        ("head", "none", 5, 1e-3), ("fine_tune", "top:20", 5, 1e-5),
    ]  # fmt: skip
    assert [one.name for one in phases_of(Settings(head_epochs=0).result_settings())] == ["fine_tune"]
