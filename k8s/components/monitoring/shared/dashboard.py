"""Prints the Grafana dashboard that dashboard.yaml describes, as JSON: `make dashboard` writes it into thaw.json.

What is common to all panels is here: variables, shading, layout, and how each kind of panel is drawn.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from job.errors import ExitCode
from job.phases import PHASE_NAMES, STATES_AFTER, STATES_BEFORE

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
SHORTHANDS = {
    "OF_RUN": "* on (namespace, pod) group_left (run_id) thaw_info{RUN}",
    "UNDER_WAY": "and on (namespace, pod, phase) thaw_phase{RUN} == 1",
    "RUN": 'namespace=~"$namespace", pod=~"$pod"',
    "DATA": 'dataset=~"$dataset"',
    "RATE": "$__rate_interval",
}
EXIT_CODES = {int(code): code.name.lower().replace("_", " ") for code in ExitCode}
GRID_WIDTH = 24
PANEL_WIDTH, PANEL_HEIGHT = 8, 7
DEFAULTS = {"kind": "timeseries", "width": PANEL_WIDTH}

Json = dict[str, Any]


def dashboard(rows: list[Json]) -> Json:
    """The whole of it, in the schema of Grafana 10 and later."""
    return {
        "uid": "thaw",
        "title": "Thaw",
        "description": "A transfer-learning Job: progress, quality, speed, checkpoints, storage, outcome.",
        "tags": ["thaw", "training"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables()},
        "annotations": {"list": [later_phases()]},
        "panels": list(laid_out(rows)),
    }


def variables() -> list[Json]:
    """A run is found by thaw_info, the only series that has its id, and stands for its pods and its data set."""
    found = 'thaw_info{namespace=~"$namespace", run_id=~"$run"}'
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        variable("namespace", "Namespace", "label_values(thaw_info, namespace)"),
        variable("run", "Run", 'label_values(thaw_info{namespace=~"$namespace"}, run_id)'),
        variable("pod", "Pod (attempt)", f"label_values({found}, pod)"),
        variable("dataset", "Data set", f"label_values({found}, dataset)", hide=2),
    ]


def variable(name: str, label: str, query: str, *, hide: int = 0) -> Json:
    """One that is read from the labels of series in the time that is shown, several at once. `hide` 2: not shown."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
        "hide": hide,
    }


def later_phases() -> Json:
    """Shades the time in which another phase trains than the head. The series do not say what a phase unfreezes."""
    others = "|".join((PHASE_NAMES[0], *STATES_BEFORE, *STATES_AFTER))
    return {
        "name": "Phases other than the head",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "light-blue",
        "expr": written_out(f'thaw_phase{{RUN, phase!~"{others}"}} == 1'),
        "titleFormat": "{{phase}}",
        "textFormat": "{{pod}}",
        "step": "30s",
    }


def written_out(query: str) -> str:
    """The query without shorthands."""
    for short, long in SHORTHANDS.items():
        query = re.sub(rf"\b{short}\b", long, query)
    return query


def laid_out(rows: list[Json]) -> Iterator[Json]:
    """Rows and their panels with numbers and places, from left to right and top to bottom."""
    number, top = 0, 0
    for row in rows:
        number += 1
        place = {"x": 0, "y": top, "w": GRID_WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": row["row"], "gridPos": place, "collapsed": False, "panels": []}
        left, top = 0, top + 1
        for described in (DEFAULTS | panel for panel in row["panels"]):
            number += 1
            width = described["width"]
            if left + width > GRID_WIDTH:
                left, top = 0, top + PANEL_HEIGHT
            place = {"x": left, "y": top, "w": width, "h": PANEL_HEIGHT}
            yield {"id": number, "gridPos": place} | drawn(described)
            left += width
        top += PANEL_HEIGHT


def drawn(described: Json) -> Json:
    """A panel without its place."""
    kind = described["kind"]
    over_time = kind in ("timeseries", "state-timeline")
    return {
        "type": kind,
        "title": described["title"],
        "description": described["about"],
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": DATASOURCE,
                "expr": written_out(query),
                "legendFormat": legend,
                "range": over_time,
                "instant": not over_time,
            }
            for i, (legend, query) in enumerate(queries(described))
        ],
        "fieldConfig": {"defaults": field(described), "overrides": []},
        "options": options(kind),
    }


def queries(described: Json) -> Iterator[tuple[str, str]]:
    """Legends and queries."""
    yield from described.get("queries", {}).items()
    if "quantiles" in described:
        histogram, by = described["quantiles"]["of"], described["quantiles"].get("by")
        labels, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
        for share in (0.5, 0.99):
            rates = f"sum by ({labels}) (rate({histogram}_bucket{{RUN}}[RATE]))"
            yield f"p{100 * share:.0f}{legend}", f"histogram_quantile({share}, {rates})"


def field(described: Json) -> Json:
    """How values are shown: in the colours of thresholds where the newest value is all, else in one for each series."""
    shown: Json = {"unit": described["unit"], "color": {"mode": "palette-classic"}}
    if described["unit"] in ("percentunit", "s", "bytes", "short", "reqps"):
        shown["min"] = 0
    shown |= {key: described[key] for key in ("max", "decimals") if key in described}
    if "thresholds" in described:
        first, *others = described["thresholds"].items()
        steps = [{"color": first[1], "value": None}, *({"color": colour, "value": at} for at, colour in others)]
        shown["thresholds"] = {"mode": "absolute", "steps": steps}
        shown["color"] = {"mode": "palette-classic" if described["kind"] == "timeseries" else "thresholds"}
    if described.get("exit_codes"):
        meanings = {str(code): {"text": f"{code}: {meaning}"} for code, meaning in EXIT_CODES.items()}
        shown["mappings"] = [{"type": "value", "options": meanings}]
    if described["kind"] == "timeseries":
        shown["custom"] = line(described)
    return shown


def line(described: Json) -> Json:
    """How a line is drawn."""
    style: Json = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "auto", "spanNulls": False}
    if described.get("stacked"):
        style |= {"fillOpacity": 80, "lineWidth": 0, "stacking": {"mode": "normal", "group": "A"}}
    if described.get("log"):
        style["scaleDistribution"] = {"type": "log", "log": 10}
    if "thresholds" in described:
        style["thresholdsStyle"] = {"mode": "dashed"}
    return style


def options(kind: str) -> Json:
    """What belongs to a kind of panel; Grafana's schema requires all of it."""
    reduced = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    legend = {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True}
    of_kinds: dict[str, Json] = {
        "timeseries": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
        "state-timeline": {
            "legend": legend,
            "tooltip": {"mode": "single", "sort": "none"},
            "showValue": "never",
            "rowHeight": 0.9,
        },
        "stat": reduced
        | {"colorMode": "value", "graphMode": "none", "textMode": "auto", "justifyMode": "auto", "orientation": "auto"}
        | {"wideLayout": True, "showPercentChange": False, "percentChangeColorMode": "standard"},
        "gauge": reduced
        | {"showThresholdLabels": False, "showThresholdMarkers": False, "orientation": "auto"}
        | {"sizing": "auto", "minVizWidth": 75, "minVizHeight": 75},
        "bargauge": reduced
        | {"displayMode": "basic", "orientation": "horizontal", "valueMode": "color", "namePlacement": "auto"}
        | {"showUnfilled": True, "sizing": "auto", "minVizWidth": 8, "minVizHeight": 16, "maxVizHeight": 300}
        | {"legend": legend | {"showLegend": False}},
    }
    return of_kinds[kind]


if __name__ == "__main__":
    described_rows = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    print(json.dumps(dashboard(described_rows), indent=2))
