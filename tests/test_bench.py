"""The tables of speed in README and docs are those of the results that `make bench` wrote."""

import json
from pathlib import Path

import pytest

from bench.table import PAGE, README, RESULTS, markdown, number, with_table


@pytest.mark.parametrize("path", [README, PAGE], ids=["README", "page"])
def test_the_tables_show_the_results(path: Path) -> None:
    """Row by row, as they were measured."""
    results = json.loads(RESULTS.read_text())
    assert markdown(results, goals_only=path == README) in path.read_text()
    assert with_table(path, results) == path.read_text()


def test_numbers_keep_three_digits() -> None:
    """Of small and of large ones."""
    values = {0.01234: "0.0123", 0.5: "0.5", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 1234.5: "1,234", 0.0: "0"}
    assert {value: number(value) for value in values} == values
