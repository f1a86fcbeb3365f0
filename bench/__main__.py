"""Measures speed and memory: alternatives take turns in one run, and are compared as ratios.

`python -m bench` measures everything, `python -m bench around growth` only these sections, and `python -m bench VGG16
MobileNetV2` only a step of these backbones; the results of the others stay. It uses photographs and ImageNet weights
under THAW_TEST_DATA, or else drawn pictures and random weights. No test depends on the timings. Nothing else should run
meanwhile. `make docs` then shows in the reference what a step of each backbone costs.
"""

import argparse
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import tensorflow as tf

from bench import against_article, around, backbones, batch, growth, input_pipeline, peers, scale
from bench.measuring import Row
from bench.table import PAGE, README, RESULTS, SCALING, markdown, with_table
from bench.workload import Workload, workload
from job import processor

SECTIONS: dict[str, ModuleType] = {
    "around": around,
    "input": input_pipeline,
    "growth": growth,
    "scale": scale,
    "batch": batch,
    "article": against_article,
    "peers": peers,
    "backbones": backbones,
}
"""The `rows` of each; where they are not of the workload, its `DATA` says of what."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    what = f"of {', '.join(SECTIONS)}, all by default; or a backbone, of which only the step is measured"
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=what)
    words = parser.parse_args().sections
    names = [word for word in words if word in backbones.NAMES]
    sections = [word for word in words if word not in names] or (["backbones"] if names else list(SECTIONS))
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"{', '.join(sorted(unknown))}: a section is one of {', '.join(SECTIONS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(prefix="thaw-bench-") as folder:
        load = workload(Path(folder))
        for name in sections:
            print(name, flush=True)
            if name == "backbones":
                # It takes hours for all: what is measured stays when it is stopped.
                for row in backbones.rows(load, names):
                    before = results[name]["rows"] if name in results else []
                    _keep(results, name, _section(load, [row]), before)
            elif measured := list(SECTIONS[name].rows(load)):
                _keep(results, name, _section(load, measured, getattr(SECTIONS[name], "DATA", "")), [])
    for path in (README, PAGE, SCALING):
        path.write_text(with_table(path, results))
    print("\n" + markdown(results))


def _keep(results: dict[str, Any], name: str, section: dict[str, Any], before: list[dict[str, Any]]) -> None:
    """Write a section down, with the rows of before that were not measured again."""
    section["rows"] = list({row["what"]: row for row in (*before, *section["rows"])}.values())
    results[name] = section
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def _section(load: Workload, rows: list[Row], data: str = "") -> dict[str, Any]:
    return {
        "measured": f"{datetime.now(UTC):%Y-%m-%d}",
        "on": {
            "processor": processor.name(),
            "cores": os.cpu_count(),
            "bfloat16": processor.has_fast_bfloat16(),
            "system": platform.system(),
            "tensorflow": tf.__version__,
            "data": data or f"{load.dataset} at {load.image_size} px" + ("" if load.is_real else ", random weights"),
        },
        "rows": [row.as_json() for row in rows],
    }


if __name__ == "__main__":
    main()
