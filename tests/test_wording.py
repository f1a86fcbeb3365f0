"""Numbers and lists in words."""

from job.wording import duration, either, short_duration, size, three_digits


def test_durations_and_sizes_have_a_digit_before_the_point() -> None:
    """A duration has at most two units; a size is in decimal ones."""
    assert [duration(seconds) for seconds in (0.4, 59, 60, 200, 7500, 350_000)] == [
        "0 s", "59 s", "1 min", "3 min 20 s", "2 h 5 min", "4 d 1 h"
    ]  # fmt: skip
    assert [size(number) for number in (12, 25_264, 249_979_208, 3.8e9, 2e13)] == [
        "12 B", "25.3 kB", "250.0 MB", "3.8 GB", "20.0 TB"
    ]  # fmt: skip


def test_numbers_are_short() -> None:
    """About three digits; durations with one unit."""
    values = (0.0, 0.00004, 0.0709, 0.3626, 1.234, 12.34, 123.4, 1205.4, 123_456_789.0, float("nan"))
    assert [three_digits(value) for value in values] == [
        "0.0000", "0.0000", "0.0709", "0.363", "1.23", "12.3", "123", "1,205", "1.2e+08", "nan",
    ]  # fmt: skip
    seconds = (0.04, 4.44, 38.4, 99.4, 100, 5900, 6000, 50 * 3600, 400 * 86400)
    assert [short_duration(value) for value in seconds] == [
        "0.0 s", "4.4 s", "38 s", "99 s", "1.7 min", "98 min", "1.7 h", "2.1 d", "400 d",
    ]  # fmt: skip


def test_a_choice_of_ways_leaves_out_those_that_are_empty() -> None:
    """One way stands alone; the last of several comes after `or`."""
    assert either("this") == either("", "this") == either("this", "") == "this"
    assert either("this", "", "that") == "this, or that"
    assert either("this", "that", "", "the other") == "this, that, or the other"
