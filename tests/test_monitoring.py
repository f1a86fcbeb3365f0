"""Alerts, dashboard and their page, against the table of series, promtool and a real Prometheus."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from prometheus_client import pushadd_to_gateway

from job.errors import ExitCode
from job.observe.metrics.exporter import JOB
from job.observe.metrics.table import SERIES
from job.phases import STATES_AFTER, STATES_BEFORE
from k8s.render import examples_in
from tests.conftest import REPOSITORY
from tests.exporter import SeriesOfARun, exported, outcome, series_of_a_job
from tests.monitoring import (
    AT_ONCE,
    COMPONENT,
    DASHBOARD,
    KUBE_STATE_METRICS,
    PROCESS,
    THAW,
    alerts,
    dashboard_queries,
    names_in,
    write_rules,
)
from tests.services import Prometheus, Pushgateway, program, scrape, wait_for

PAGE = (REPOSITORY / "docs/monitoring.md").read_text()
QUERIES = list(dashboard_queries(namespace="ml", pod="well", dataset="well"))


def run(command: str | Sequence[str], *, folder: Path = REPOSITORY) -> str:
    """What a command prints. It must succeed."""
    words = shlex.split(command) if isinstance(command, str) else command
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It scrapes a run that is well and one that is sick, a Pushgateway with an outcome of each, and sick Jobs."""
    folder = tmp_path_factory.mktemp("prometheus")
    rules = [write_rules(folder / "rules.yaml"), write_rules(folder / "at_once.yaml", at_once=True)]
    with (
        exported(SeriesOfARun()) as well,
        exported(SeriesOfARun(sick=True)) as sick,
        exported(
            series_of_a_job(namespace="ml", failed="thaw-failed", late="thaw-sick", pods=("well", "sick"))
        ) as jobs,
        Pushgateway(tmp_path_factory.mktemp("pushgateway")) as gateway,
    ):
        for name in ("well", "sick"):
            pushadd_to_gateway(gateway.url, job="thaw", grouping_key={"dataset": name}, registry=outcome())
        scrapes = [
            scrape("ml/thaw", well, labels={"namespace": "ml", "pod": "well", "job_name": "thaw-well"}),
            scrape("ml/thaw-sick", sick, labels={"namespace": "ml", "pod": "sick", "job_name": "thaw-sick"}),
            scrape("kube-state-metrics", jobs, honor_labels=True),
            scrape("pushgateway", gateway.url, honor_labels=True),
        ]
        with Prometheus(folder, scrapes=scrapes, rules=rules) as server:
            server.await_value('thaw_exit_code{dataset="sick"}')
            worse = outcome(
                thaw_exit_code=5, thaw_test_accuracy_ratio=0.4, thaw_last_success_timestamp_seconds=1_700_000_000
            )
            pushadd_to_gateway(gateway.url, job="thaw", grouping_key={"dataset": "sick"}, registry=worse)
            yield server


def test_rules_and_dashboard_read_only_series_that_there_are_and_show_all_of_the_table() -> None:
    """Rules read those of the table, of the process, and of kube-state-metrics; panels those of the first two."""
    in_rules = {rule: names_in(rule) for rule in (alert["expr"] for alert in alerts().values())}
    in_panels = {query: names_in(query) for _, query in QUERIES}
    for text, names in (in_rules | in_panels).items():
        assert names, text
        assert names <= THAW | PROCESS | (KUBE_STATE_METRICS if text in in_rules else set()), text
    shown = set().union(*in_panels.values())
    assert [series.name for series in SERIES if not any(name.startswith(series.name) for name in shown)] == []


@pytest.mark.parametrize("page", ["docs/operations.md", "docs/monitoring.md"])
def test_a_page_names_only_series_that_there_are(page: str) -> None:
    """A wildcard stands for some."""
    for name in re.findall(r"\b(thaw_[a-z_]+|kube_job_[a-z_]+)\b(?!\*)", (REPOSITORY / page).read_text()):
        assert name in THAW | KUBE_STATE_METRICS | {series.name for series in SERIES}, name


def test_an_alert_says_how_grave_it_is_and_what_to_do_and_has_a_unit_test() -> None:
    """With the value that it found, and a link to its section of the page on monitoring."""
    for name, rule in alerts().items():
        severity = rule["labels"]["severity"]
        assert severity in ("critical", "warning", "info"), name
        assert set(rule["annotations"]) == {"summary", "description", "action", "runbook_url"}, name
        assert "$value" in rule["annotations"]["description"], name
        section = rf"^### {name}\n\n\*\*{severity.capitalize()}\*\*: [^#]+?\n\nWhat to do: \S"
        assert re.search(section, PAGE, re.MULTILINE), name
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/monitoring.md#{name.lower()}"), name
    firing = re.findall(r'alertname="(\w+)"', (REPOSITORY / "tests/alerts_test.yaml").read_text())
    assert set(firing) == set(alerts())


def test_a_run_trains_in_a_phase_of_any_name() -> None:
    """THAW_PHASES names the phases: rules and dashboard leave out the other states, and ask for none by its name."""
    in_rules = " ".join(rule["expr"] for rule in alerts().values())
    without = re.findall(r'phase!~"([a-z_|]+)"', in_rules)
    assert [set(states.split("|")) for states in without] == [{*STATES_BEFORE, *STATES_AFTER}] * 4
    assert not re.search(r'phase=~?"[a-z]', in_rules)
    (shaded,) = json.loads(DASHBOARD.read_text())["annotations"]["list"]
    (states,) = re.findall(r'phase!~"([a-z_|]+)"', shaded["expr"])
    assert set(states.split("|")) == {"head", *STATES_BEFORE, *STATES_AFTER}


def test_the_host_of_the_runbook_is_named_by_one_command(tmp_path: Path) -> None:
    """That of the page; afterwards no rule leads to an example, which `make deploy` would refuse."""
    (command,) = re.findall(r"^    (sed -i .+) k8s/components/monitoring/shared/alerts\.yaml$", PAGE, re.MULTILINE)
    rules = tmp_path / "alerts.yaml"
    shutil.copy(COMPONENT / "alerts.yaml", rules)
    run(f"{command} {rules}")
    assert examples_in([yaml.safe_load(rules.read_text())]) == []
    assert rules.read_text().count("runbook_url: https://github.com/my-company/thaw/blob/main/docs/") == len(alerts())


def test_every_alert_fires_and_stays_silent_as_its_unit_test_says(tmp_path: Path) -> None:
    """`promtool test rules`."""
    write_rules(tmp_path / "thaw.rules.yaml")
    shutil.copy(REPOSITORY / "tests/alerts_test.yaml", tmp_path)
    run([program("promtool"), "test", "rules", "alerts_test.yaml"], folder=tmp_path)


def test_the_page_on_monitoring_shows_what_prometheus_takes(tmp_path: Path) -> None:
    """Without an operator: a command that makes a rule file, and a configuration. Debian's has no discovery of pods."""
    (command,) = re.findall(r"^    (sed .+) > thaw\.rules\.yaml$", PAGE, re.MULTILINE)
    rules = tmp_path / "thaw.rules.yaml"
    rules.write_text(run(command))
    assert yaml.safe_load(rules.read_text()) == yaml.safe_load((COMPONENT / "alerts.yaml").read_text())["spec"]
    (block,) = re.findall(r"```yaml\n(.+?)```", PAGE, re.DOTALL)
    config = yaml.safe_load(block)
    assert config["scrape_configs"][0].pop("kubernetes_sd_configs") == [{"role": "pod"}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    run([program("promtool"), "check", "config", "prometheus.yml"], folder=tmp_path)  # and the rules with it


def test_the_command_of_the_page_makes_the_gateway_forget_a_data_set(tmp_path: Path) -> None:
    """The alert on its last success would never end; other data sets stay."""
    (command,) = re.findall(r"^    (curl .+)$", PAGE, re.MULTILINE)
    with Pushgateway(tmp_path) as gateway:
        for name in ("cats_vs_dogs", "well"):
            pushadd_to_gateway(gateway.url, job=JOB, grouping_key={"dataset": name}, registry=outcome())
        run(command.replace("http://pushgateway.monitoring.svc:9091", gateway.url))
        left = set(re.findall(r'^thaw_last_success_timestamp_seconds{.*dataset="(\w+)"', gateway.get("/metrics"), re.M))
    assert left == {"well"}


def test_the_dashboard_is_the_generated_one_and_complete() -> None:
    """Panels are explained and do not overlap, no data source is fixed, every exit code has its words."""
    text = DASHBOARD.read_text()
    assert run([sys.executable, "-m", "k8s.components.monitoring.shared.dashboard"]) == text, "run `make dashboard`"
    dashboard = json.loads(text)
    cells: set[tuple[int, int]] = set()
    for panel in (panel for panel in dashboard["panels"] if panel["type"] != "row"):
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        own = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not own & cells, panel["title"]
        cells |= own
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", text)) <= variables | {"__rate_interval", "__all"}
    assert set(re.findall(r'"uid": "(.+?)"', text)) == {"${datasource}", "thaw"}
    assert [code for code in ExitCode if f'"text": "{int(code)}: ' not in text] == []


@pytest.mark.slow
def test_every_panel_shows_data_of_a_run(prometheus: Prometheus) -> None:
    """Its query is PromQL, and a real Prometheus that scrapes a run has an answer, which is a number."""
    for title, query in QUERIES:
        values = wait_for(lambda query=query: list(prometheus.query(query).values()), what=f"data of {title}")  # type: ignore[misc]
        assert all(value == value for value in values), title


@pytest.mark.slow
def test_the_variables_find_the_run(prometheus: Prometheus) -> None:
    """By the label values that they ask for."""
    prometheus.await_value('count(thaw_info{pod="well"})')
    (_, namespace, run_id, pod, dataset) = json.loads(DASHBOARD.read_text())["templating"]["list"]
    chosen = {"$namespace": "ml", "$run": "run_id"}
    found = []
    for variable in (namespace, run_id, pod, dataset):
        series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
        for name, value in chosen.items():
            series = series.replace(name, value)
        found.append(set(prometheus.api(f"label/{label}/values", **{"match[]": series})))
    assert found == [{"ml"}, {"run_id"}, {"well", "sick"}, {"dataset"}]


@pytest.mark.slow
def test_every_alert_fires_for_what_is_sick_with_its_texts_filled_in(prometheus: Prometheus) -> None:
    """At once, without the time that a condition must hold; and none fires for the run that is well."""

    def firing() -> dict[str, dict[str, str]]:
        return {
            alert["labels"]["alertname"].removesuffix(AT_ONCE): alert["labels"] | alert["annotations"]
            for alert in prometheus.api("alerts")["alerts"]
            if alert["state"] == "firing" and alert["labels"]["alertname"].endswith(AT_ONCE)
        }

    wait_for(lambda: set(firing()) == set(alerts()), what="the last alert")
    for name, texts in firing().items():
        assert "well" not in (texts.get("pod"), texts.get("dataset"), texts.get("job_name")), name
        text = " ".join(texts[key] for key in ("summary", "description", "action"))
        assert not re.search(r"<no value>|error expanding|\{\{|%!", text), text
        assert re.search(r"\d|NaN", texts["description"]), text


def test_kustomize_builds_a_resource_for_each_operator() -> None:
    """The same groups of rules and the same dashboard for both."""
    kubectl = program("kubectl", hint="1.27 or newer renders the manifests, without a cluster")
    built = {}
    for component in ("monitoring", "gke-monitoring"):
        documents = yaml.safe_load_all(
            run([kubectl, "kustomize", str(REPOSITORY / "k8s/components" / component / "shared")])
        )
        built[component] = {document["kind"]: document for document in documents}
    operator, gke = built["monitoring"], built["gke-monitoring"]
    assert set(operator) == {"ConfigMap", "PodMonitor", "PrometheusRule"}
    assert set(gke) == {"ConfigMap", "PodMonitoring", "ClusterRules"}
    assert gke["ClusterRules"]["spec"] == operator["PrometheusRule"]["spec"]
    assert gke["ClusterRules"]["apiVersion"] == gke["PodMonitoring"]["apiVersion"] == "monitoring.googleapis.com/v1"
    assert gke["ConfigMap"] == operator["ConfigMap"]
    assert operator["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(operator["ConfigMap"]["data"]["thaw.json"]) == json.loads(DASHBOARD.read_text())
