"""Several steps in one call: the bits of one at a time, whatever the calls were; the facts still count steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.data.splits import Splits
from job.errors import Interrupted
from job.observe.events import EpochFinished, StepDone
from job.observe.ledger import Ledger
from job.observe.metrics import Metrics
from job.observe.progress import Progress
from job.phases import Phase
from job.storage import LocalStore
from job.train.loop import Fact, Position, train_phase
from job.train.state import PhaseState
from job.train.step import Recipe
from tests import shapes
from tests.classifiers import ALONE, build
from tests.processes import Environment, result
from tests.runs import Small, StopAtStep, Undisturbed, record_of, result_of, start
from tests.teams import TeamRun

Load = Callable[..., Splits]

FINE_TUNE = Phase(
    name="fine_tune", unfreeze="all", learning_rate=1e-2, epochs=2, schedule="cosine", warmup_epochs=0.5
)  # fmt: skip
"""Three steps an epoch, each with a learning rate of its own."""


pytestmark = pytest.mark.usefixtures("_deterministic")


@pytest.fixture
def load(prepared: Path, load_and_close: Load) -> Load:
    return lambda **changes: load_and_close(shapes.request(prepared, **changes))


def trained(
    splits: Splits, *, position: Position | None = None, ledger: Ledger | None = None, **recipe: Any
) -> tuple[PhaseState, list[Fact]]:
    """The state after a phase, and its facts; `recipe` are fields of the recipe."""
    state = PhaseState(build(), FINE_TUNE)
    facts = train_phase(
        state, train=splits.train, validation=splits.validation, recipe=Recipe(16, 0, xla=False, **recipe),
        position=position or Position(), ledger=ledger or Ledger(), collective=ALONE,
    )  # fmt: skip
    return state, list(facts)


def learned(facts: list[Fact]) -> list[tuple[float, ...]]:
    return [
        (fact.train_loss, fact.train_accuracy, fact.validation_loss, fact.validation_accuracy, fact.learning_rate)
        for fact in facts
        if isinstance(fact, EpochFinished)
    ]


def calls(facts: list[Fact]) -> list[tuple[int, int, int]]:
    """Of each call the steps that it did, the step after it, and its examples."""
    return [(fact.num_steps_done, fact.step, fact.num_examples) for fact in facts if isinstance(fact, StepDone)]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [{"mixup": 0.4, "cutmix": 1.0}, {"class_weights": (0.6, 2.5)}])
def test_the_state_is_that_of_one_step_a_call(load: Load, recipe: dict[str, Any]) -> None:
    """Bit for bit, with another learning rate in each step, and a last batch that is partial.

    The first call, which is compiled, is of one step, and no call goes beyond the end of an epoch.
    """
    splits = load()
    (one, by_one), (several, by_four) = (trained(splits, steps_per_execution=number, **recipe) for number in (1, 4))
    assert calls(by_one) == [(1, step, 8 if step % 3 == 0 else 16) for step in range(1, 7)]
    assert calls(by_four) == [(1, 1, 16), (2, 3, 24), (3, 6, 40)]
    arrays = several.arrays()
    for name, expected in one.arrays().items():
        np.testing.assert_array_equal(arrays[name], expected, err_msg=name)
    assert learned(by_four) == learned(by_one)


@pytest.mark.slow
def test_steps_that_were_lost_are_counted_apart(load: Load) -> None:
    """No call does some that an earlier attempt had done, and some that are new."""
    ledger = Ledger()
    _, facts = trained(load(), position=Position(steps_lost=2), ledger=ledger, steps_per_execution=8)
    assert [steps for steps, _, _ in calls(facts)] == [1, 1, 1, 3]
    seconds = ledger.seconds()["start"]
    assert min(seconds[category] for category in ("compile", "recompute", "productive")) > 0


def test_a_call_is_as_many_steps_in_the_metrics() -> None:
    """Of the same length each, for a histogram of steps."""
    metrics = Metrics(
        Progress(), constants=dict.fromkeys(("run_id", "fingerprint", "dataset", "backbone"), ""), disks=[]
    )
    done = StepDone("head", 0, 5, 8, 5, 8, 64, seconds=2.0, data_wait_seconds=0.5, is_first=False, num_steps_done=4)
    metrics.step(done, lambda: (0.0, 0.0))
    value = metrics.registry.get_sample_value
    assert value("thaw_steps_total", {"phase": "head"}) == 4
    assert value("thaw_examples_total", {"phase": "head"}) == 64
    assert value("thaw_step_duration_seconds_count", {"phase": "head"}) == 4
    assert value("thaw_step_duration_seconds_sum", {"phase": "head"}) == 2.0
    assert value("thaw_data_wait_seconds_total") == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "stop", "committed", "then"),
    [(3, ("head", 2), 3, 7), (2, ("head", 5), 5, 1), (7, ("fine_tune", 1), 1, 2), (1, ("fine_tune", 4), 4, 4)],
)
def test_a_run_that_is_stopped_between_calls_goes_on_with_other_calls(
    undisturbed_run: Undisturbed, small: Small, store: LocalStore, number: int, stop: tuple[str, int], committed: int,
    then: int,
) -> None:  # fmt: skip
    """What is committed is the state after the call in which the stop came."""
    observer = StopAtStep(stop[0], stop[1] - 1)
    with pytest.raises(Interrupted):
        start(small(steps_per_execution=number), store, observer=observer, check_stop=observer.check_stop)
    assert (record_of(store).checkpoints[-1].phase, record_of(store).checkpoints[-1].step) == (stop[0], committed)
    start(small(steps_per_execution=then), store)
    assert result_of(store) == result_of(undisturbed_run[0])


@pytest.mark.slow
def test_workers_end_with_the_same_bits(environment: Environment, tmp_path: Path) -> None:
    """Three, of which the last has no row of the last batch, with images in memory and on the device."""
    short = {"head_epochs": 1, "fine_tune_epochs": 1}
    envs = [
        environment(**short, storage_uri=tmp_path / "whole"),
        environment(**short, steps_per_execution=3, cache="device", storage_uri=tmp_path / "three"),
    ]
    for env in envs:
        with TeamRun(env, 3) as team:
            assert team.codes() == [0] * 3, team.told()
    assert result(envs[1]) == result(envs[0])


@pytest.mark.slow
def test_workers_stop_after_the_same_call(environment: Environment) -> None:
    """Whichever of them is told to."""
    env = environment(head_epochs=1000, steps_per_execution=2)
    with TeamRun(env, 2) as team:
        team.wait_for("committed", phase="head")
        team.processes[1].terminate()
        assert team.codes() == [42, 42], team.told()
