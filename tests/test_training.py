"""Training: frozen means frozen, the rest learns, and every step is a function of (seed, phase, step)."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from job.data.splits import Splits, load_splits
from job.errors import PeerLost, TrainingDiverged
from job.model.classifier import Classifier
from job.observe.events import EpochFinished, StepDone
from job.observe.ledger import Ledger
from job.phases import Phase
from job.train import loop
from job.train.collective import Collective
from job.train.loop import Position, train_phase
from job.train.loss import loss_of, most_probable
from job.train.state import PhaseState
from job.train.step import Recipe
from tests import shapes
from tests.classifiers import ALONE, build

pytestmark = pytest.mark.usefixtures("_deterministic")


@pytest.fixture(scope="module")
def splits(prepared: Path) -> Splits:
    return load_splits(shapes.request(prepared), check_stop=lambda: None)


Facts = list[StepDone | EpochFinished]


def new_state(name: str, *, dropout: float = 0.2, epochs: int = 2) -> PhaseState:
    phase = Phase(name=name, unfreeze={"head": "none", "fine_tune": "all"}[name], learning_rate=1e-2, epochs=epochs)
    return PhaseState(build(dropout=dropout), phase)


START = Position()
PLAIN = Recipe(16, 0, xla=False)
WEIGHTED = Recipe(16, 0, xla=False, class_weights=(0.625, 2.5))


def train(
    state: PhaseState,
    splits: Splits,
    *,
    recipe: Recipe = PLAIN,
    position: Position = START,
    max_steps: int = 10**6,
    collective: Collective = ALONE,
) -> Facts:
    """Train to the end, or until so many steps are done."""
    facts: Facts = []
    for fact in train_phase(
        state, train=splits.train, validation=splits.validation, recipe=recipe, position=position, ledger=Ledger(),
        collective=collective,
    ):  # fmt: skip
        facts.append(fact)
        if isinstance(fact, StepDone) and fact.step == max_steps:
            break
    return facts


def weights(classifier: Classifier, part: str) -> dict[str, np.ndarray]:
    named = classifier.named_variables()
    return {name: variable.numpy() for name, variable in named.items() if name.startswith(part)}


def test_in_the_head_phase_no_backbone_tensor_changes(splits: Splits) -> None:
    """Bit for bit, while the head learns. Facts come in order: three batches an epoch, then the epoch."""
    state = new_state("head")
    backbone, head = weights(state.classifier, "backbone"), weights(state.classifier, "head")
    facts = train(state, splits)
    for name, before in backbone.items():
        np.testing.assert_array_equal(state.classifier.named_variables()[name].numpy(), before)
    assert any(not np.array_equal(weights(state.classifier, "head")[name], head[name]) for name in head)
    kinds = [(type(fact).__name__, fact.epoch, fact.step) for fact in facts]
    assert kinds == [
        ("StepDone", 0, 1), ("StepDone", 0, 2), ("StepDone", 0, 3), ("EpochFinished", 0, 3),
        ("StepDone", 1, 4), ("StepDone", 1, 5), ("StepDone", 1, 6), ("EpochFinished", 1, 6),
    ]  # fmt: skip
    steps = [fact for fact in facts if isinstance(fact, StepDone)]
    assert [step.is_first for step in steps] == [True] + [False] * 5
    assert [step.num_examples for step in steps] == [16, 16, 8] * 2


def test_in_fine_tuning_everything_changes_but_the_statistics(splits: Splits) -> None:
    """Every kernel, gamma and beta; no moving mean, no moving variance. The loss falls well below chance."""
    state = new_state("fine_tune", epochs=12)
    before = weights(state.classifier, "backbone") | weights(state.classifier, "head")
    last = train(state, splits)[-1]
    after = weights(state.classifier, "backbone") | weights(state.classifier, "head")
    unchanged = {name.rsplit("/", 1)[1] for name in before if np.array_equal(before[name], after[name])}
    assert unchanged == {"moving_mean", "moving_variance"}
    assert isinstance(last, EpochFinished)
    assert last.train_loss < 0.3
    assert last.validation_accuracy > 0.9


@pytest.mark.parametrize(
    ("phase", "stop_after", "recipe"),
    [
        ("fine_tune", 4, WEIGHTED),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in itertools.product(["head", "fine_tune"], [1, 3, 4], [PLAIN])
        ),
    ],
)
def test_a_phase_continued_at_any_step_ends_with_the_same_bits(
    splits: Splits, phase: str, stop_after: int, recipe: Recipe
) -> None:
    """In the middle of an epoch, at its end before validation, and in the next one."""
    whole = new_state(phase)
    epochs = [fact for fact in train(whole, splits, recipe=recipe) if isinstance(fact, EpochFinished)]

    first = new_state(phase)
    facts = train(first, splits, recipe=recipe, max_steps=stop_after)
    finished = [fact for fact in facts if isinstance(fact, EpochFinished)]
    second = new_state(phase)
    second.load(first.arrays(), step=stop_after)
    rest = train(second, splits, recipe=recipe, position=Position(history=finished, step=stop_after))
    finished += [fact for fact in rest if isinstance(fact, EpochFinished)]

    assert second.classifier.digest() == whole.classifier.digest()
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    for fact, expected in zip(finished, epochs, strict=True):
        assert [getattr(fact, name) for name in names] == [getattr(expected, name) for name in names]


@pytest.mark.slow
def test_accuracy_is_that_of_the_model_on_the_split(splits: Splits) -> None:
    """What an epoch reports is what counting over the validation images gives."""
    state = new_state("fine_tune")
    last = train(state, splits)[-1]
    assert isinstance(last, EpochFinished)
    logits, labels = [], []
    for images, batch_labels in splits.validation.batches(16):
        logits.append(state.classifier.logits(state.classifier.features(images)))
        labels.append(batch_labels)
    every_logit, every_label = tf.concat(logits, 0), tf.concat(labels, 0)
    assert last.validation_accuracy == np.mean(most_probable(every_logit).numpy() == every_label)
    assert last.validation_loss == pytest.approx(float(tf.reduce_mean(loss_of(every_logit, every_label))), rel=1e-5)


@pytest.mark.slow
def test_validation_features_of_a_frozen_backbone_are_computed_once(
    splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every epoch of fine-tuning."""
    passes = {"head": 0, "fine_tune": 0}
    for phase in passes:
        batches: Callable[..., Any] = type(splits.validation).batches

        def counted(self: Any, *args: Any, phase: str = phase, batches: Any = batches, **kwargs: Any) -> Any:
            passes[phase] += self is splits.validation
            return batches(self, *args, **kwargs)

        monkeypatch.setattr(type(splits.validation), "batches", counted)
        train(new_state(phase, epochs=3), splits)
        monkeypatch.undo()
    assert passes == {"head": 1, "fine_tune": 3}


class Left(Collective):
    def confirm(self) -> None:
        raise PeerLost("worker 1 is gone")


def test_divergence_is_an_error_with_the_value_and_the_step(splits: Splits) -> None:
    """A loss that is not a number ends the phase; but not that of a sum which a lost worker broke off."""
    state = new_state("fine_tune")
    state.classifier.head.kernel.assign(np.full(state.classifier.head.kernel.shape, np.nan, np.float32))
    with pytest.raises(TrainingDiverged, match="the loss is nan after step 1 of phase fine_tune"):
        train(state, splits)
    with pytest.raises(PeerLost, match="worker 1 is gone"):
        train(state, splits, collective=Left(ALONE.team))


class Read(NamedTuple):
    """Totals that note when they are waited for."""

    call: int
    log: list[str]

    def numpy(self) -> np.ndarray:
        self.log.append(f"wait for {self.call}")
        return np.ones(3)


def test_no_more_than_two_calls_are_ever_under_way(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of a GPU returns before it is done. The first, which compiles, and the last of an epoch are waited for."""
    log: list[str] = []

    def call(*_: Any) -> tuple[Read, None]:
        number = sum(line.startswith("call") for line in log) + 1
        log.append(f"call {number}")
        return Read(number, log), None

    monkeypatch.setattr(loop, "train_steps", lambda *_, **__: call)
    num_calls = -(-len(splits.train) // 10)
    train(new_state("head", epochs=1), splits, recipe=Recipe(10, 0, xla=False), max_steps=num_calls)
    assert num_calls == 4
    assert log == [
        "call 1", "wait for 1", "call 2", "wait for 1", "call 3", "wait for 2", "call 4", "wait for 4",
    ]  # fmt: skip


def test_a_logit_is_judged_at_zero() -> None:
    """The threshold of a probability, 0.5, would be wrong for a logit."""
    assert most_probable(tf.constant([[0.3], [-0.3]])).numpy().tolist() == [1, 0]


@pytest.mark.slow
def test_xla_computes_the_same(splits: Splits) -> None:
    """It is a choice of speed; the numbers agree to rounding. (Its random bits are its own, hence no dropout here.)"""
    losses = []
    for xla in (False, True):
        last = train(new_state("head", dropout=0.0, epochs=1), splits, recipe=Recipe(16, 0, xla=xla))[-1]
        assert isinstance(last, EpochFinished)
        losses.append(last.train_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
