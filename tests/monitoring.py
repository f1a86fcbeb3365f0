"""The rules and the dashboard as tests need them: files, queries, names of series."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from job.observe.metrics.table import SERIES
from tests.conftest import REPOSITORY

COMPONENT = REPOSITORY / "k8s/components/monitoring/shared"
DASHBOARD = COMPONENT / "thaw.json"
PARTS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
THAW = {f"{series.name}{part}" for series in SERIES for part in PARTS[series.kind]}
"""All that a run and a push export."""

PROCESS = {"process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"}
"""Of the Prometheus client."""

KUBE_STATE_METRICS = {
    "kube_job_failed",
    "kube_job_spec_active_deadline_seconds",
    "kube_job_status_active",
    "kube_job_status_start_time",
    "kube_pod_container_resource_limits",
}
"""https://github.com/kubernetes/kube-state-metrics/tree/main/docs/metrics/workload: those of Jobs are stable."""

WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "Inf"}
"""Of PromQL, which are no names."""


AT_ONCE = "AtOnce"
"""The end of an alert's name in such a file."""


def rule_groups() -> list[dict[str, Any]]:
    """The groups of alerts.yaml."""
    groups: list[dict[str, Any]] = yaml.safe_load((COMPONENT / "alerts.yaml").read_text())["spec"]["groups"]
    return groups


def alerts() -> dict[str, dict[str, Any]]:
    """The rules of all groups by name."""
    return {rule["alert"]: rule for group in rule_groups() for rule in group["rules"]}


def write_rules(path: Path, *, at_once: bool = False) -> Path:
    """A rule file of Prometheus; `at_once` drops the time between looks, and that for which a condition must hold."""
    groups = rule_groups()
    if at_once:
        for group in groups:
            del group["interval"]
            for rule in group["rules"]:
                rule.pop("for", None)
                rule["alert"] += AT_ONCE
    path.write_text(yaml.safe_dump({"groups": groups}, sort_keys=False))
    return path


def dashboard_queries(**chosen: str) -> Iterator[tuple[str, str]]:
    """Title of the panel and query, each with its variables set: namespace, pod, dataset."""
    values = {"__rate_interval": "10s"} | chosen
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], re.sub(r"\$(\w+)", lambda found: values[found[1]], target["expr"])


def names_in(expression: str) -> set[str]:
    """The names of series in an expression of PromQL."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', "", expression)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"\b[a-zA-Z_][\w:]*\b(?!\s*\()", bare)) - WORDS
