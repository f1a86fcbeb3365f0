"""What can be said of two splits before the data is known, and nothing more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.data import split_spec

bounds = st.one_of(st.none(), st.integers(0, 100))


def spec(start: int | None, stop: int | None, unit: str) -> str:
    ends = ["" if end is None else f"{end}{unit}" for end in (start, stop)]
    return f"train[{ends[0]}:{ends[1]}]"


@given(bounds, bounds, bounds, bounds, st.sampled_from(["%", ""]))
def test_splits_overlap_exactly_when_they_share_an_example(
    a: int | None, b: int | None, c: int | None, d: int | None, unit: str
) -> None:
    """Against the plain meaning: slices of examples, of which 1 % is one when there are 100."""
    examples = range(100 if unit == "%" else 1000)
    shared = set(examples[slice(a, b)]) & set(examples[slice(c, d)])
    assert split_spec.overlap(spec(a, b, unit), spec(c, d, unit)) == bool(shared)


@given(bounds, bounds, st.sampled_from(["%", ""]))
def test_an_empty_slice_is_empty(a: int | None, b: int | None, unit: str) -> None:
    """A slice is empty when it begins at or after its end."""
    examples = range(100 if unit == "%" else 1000)
    assert split_spec.is_empty(spec(a, b, unit)) == (len(examples[slice(a, b)]) == 0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train", "train[:1]"),
        ("train[:10%]+train[80%:]", "train[90%:]"),
        ("train[-20%:]", "train[85%:90%]"),
        ("train[:50%]", "train"),
    ],
)
def test_certain_overlaps_are_found(first: str, second: str) -> None:
    """Sums, whole splits and percent from the end are compared."""
    assert split_spec.overlap(first, second)
    assert split_spec.overlap(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [("train", "test"), ("train[:40%]", "train[400:500]"), ("train[:10]", "train[-10:]"), ("train[:1shard]", "train")],
)
def test_what_depends_on_the_size_is_left_open(first: str, second: str) -> None:
    """Nothing is refused that may be right."""
    assert not split_spec.overlap(first, second)


@pytest.mark.parametrize("text", ["train[:40", "train[a:b]", "train[40%:500]", "[:3]", "train[:140%]", "tr ain"])
def test_text_outside_the_grammar_is_refused(text: str) -> None:
    """The message shows the text and the grammar."""
    with pytest.raises(ValueError, match=r"train|NAME|%"):
        split_spec.parse(text)
