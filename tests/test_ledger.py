"""Where time goes: every second in one stage and one category."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.observe.ledger import CATEGORIES, Ledger, by_category, by_stage, goodput
from tests.shown import Clock


def test_seconds_belong_to_the_innermost_category_of_the_open_stage() -> None:
    """And to the outer one again afterwards; what is before the first stage is the start."""
    clock = Clock(100.0)
    ledger = Ledger(clock=clock)
    clock.now += 1
    with ledger.stage("head", "idle"):
        clock.now += 2
        with ledger.during("productive"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    assert ledger.seconds() == {"start": {"init": 17.0}, "head": {"idle": 10.0, "productive": 4.0}}


@given(st.lists(st.tuples(st.sampled_from(CATEGORIES), st.booleans(), st.integers(0, 50)), max_size=30))
def test_the_seconds_of_an_attempt_add_up_to_its_wall_time(moves: list[tuple[str, bool, int]]) -> None:
    """However stages and categories nest, and at every instant."""
    clock = Clock(100.0)
    ledger = Ledger(clock=clock)

    def go(left: list[tuple[str, bool, int]]) -> None:
        if not left:
            return
        (category, is_stage, seconds), *rest = left
        opened = ledger.stage(category, category) if is_stage else ledger.during(category)  # type: ignore[arg-type]
        with opened:
            clock.now += seconds
            assert sum(by_stage([ledger.seconds()]).values()) == clock.now - 100
            go(rest)
        clock.now += seconds

    go(moves)
    assert sum(by_stage([ledger.seconds()]).values()) == clock.now - 100
    assert sum(by_category([ledger.seconds()]).values()) == clock.now - 100


def test_an_error_inside_closes_what_it_left() -> None:
    """The time is kept, and what follows is counted elsewhere."""
    clock = Clock(100.0)
    ledger = Ledger(clock=clock)

    def fail() -> None:
        with ledger.stage("data", "cache"):
            clock.now += 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.now += 5
    assert ledger.seconds() == {"start": {"init": 5.0}, "data": {"cache": 1.0}}


def test_a_run_adds_up_its_attempts() -> None:
    """By stage and by category; goodput is the share of new steps in all of it."""
    ledger = Ledger(clock=Clock(100.0))
    ledger.earlier = ({"head": {"productive": 6.0, "compile": 2.0}}, {"head": {"recompute": 1.0, "productive": 1.0}})
    assert by_stage(ledger.of_run()) == {"head": 10.0, "start": 0.0}
    seconds = by_category(ledger.of_run())
    assert (seconds["productive"], seconds["compile"], seconds["recompute"]) == (7.0, 2.0, 1.0)
    assert set(seconds) == set(CATEGORIES)
    assert goodput(ledger.of_run()) == pytest.approx(0.7)
    assert goodput([]) == 0.0
