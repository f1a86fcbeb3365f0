"""The tables of speed in README and docs are those of the results that `make bench` wrote."""

import json
from pathlib import Path

import pytest

from bench import scale_model
from bench.__main__ import SECTIONS
from bench.scale_model import Parts
from bench.table import PAGE, README, RESULTS, SCALING, number, of_page, with_table


@pytest.mark.parametrize("path", [README, PAGE, SCALING], ids=["README", "page", "scaling"])
def test_the_tables_show_the_results(path: Path) -> None:
    """Row by row, as they were measured."""
    results = json.loads(RESULTS.read_text())
    assert of_page(path, results) in path.read_text()
    assert with_table(path, results) == path.read_text()


def test_a_section_that_does_not_measure_the_workload_says_on_what_it_measures() -> None:
    """As its results have it; any other says nothing."""
    results = json.loads(RESULTS.read_text())
    said = {name: section.DATA for name, section in SECTIONS.items() if hasattr(section, "DATA")}
    assert said == {"peers": results["peers"]["on"]["data"]}


def test_numbers_keep_three_digits() -> None:
    """Of small and of large ones."""
    values = {0.01234: "0.0123", 0.5: "0.5", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 1234.5: "1,234", 0.0: "0"}
    assert {value: number(value) for value in values} == values


def test_the_page_shows_the_model_of_a_step() -> None:
    """Both tables, as its parts give them."""
    text = SCALING.read_text()
    assert text.count("<!-- scale model -->") == 2
    assert scale_model.with_tables(text) == text


def test_a_modelled_step_is_the_sum_of_its_parts() -> None:
    """By hand: 2 GPUs a node, 100 images a second, a gradient of 8 bytes; one node at 8 bytes a second, two at 1."""
    parts = Parts(
        images_per_second=100, gradient_bytes=8, floor_seconds=0.05, begin_seconds=0.25, gpus_per_node=2,
        node_bytes_per_second=8, network_gigabits=16e-9, network_share=0.5, node_hop_seconds=1, network_hop_seconds=2,
    )  # fmt: skip
    assert parts.step_seconds(4, 1) == 0.05
    assert parts.step_seconds(100, 1) == 1
    # Two hops of half the gradient each.
    assert parts.step_seconds(100, 2) == pytest.approx(0.5 + 0.25 + 2 * (0.5 + 1))
    # Of four, each sends six quarters of it; 100 images and one more are 26 on the first.
    assert parts.step_seconds(101, 4) == pytest.approx(0.26 + 0.25 + 6 * (2 + 2))
    assert parts.speed_up(100, 2) == pytest.approx(1 / 3.75)
