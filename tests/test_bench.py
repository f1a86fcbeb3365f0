"""The table of speeds in the README is that of the results that `make bench` wrote."""

import json

from bench.table import README, RESULTS, markdown, number, with_table


def test_the_readme_shows_the_results() -> None:
    """Row by row, as they were measured."""
    readme = README.read_text()
    results = json.loads(RESULTS.read_text())
    assert markdown(results) in readme
    assert with_table(readme, results) == readme


def test_numbers_keep_three_digits() -> None:
    """Of small and of large ones."""
    values = {0.01234: "0.0123", 0.5: "0.5", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 1234.5: "1,234", 0.0: "0"}
    assert {value: number(value) for value in values} == values
