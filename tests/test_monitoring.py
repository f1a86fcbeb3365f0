"""Alerts, dashboard and their page, against the table of series, promtool and a real Prometheus."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest, pushadd_to_gateway

from job.errors import ExitCode
from job.observe.metrics.table import SERIES
from tests.conftest import REPOSITORY
from tests.exporter import Exporter, SeriesOfAJob, SeriesOfARun, outcome
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


def run(command: str | Sequence[str], *, text: str | None = None, folder: Path = REPOSITORY) -> str:
    """What a command prints. It must succeed."""
    words = shlex.split(command) if isinstance(command, str) else command
    done = subprocess.run(words, input=text, capture_output=True, text=True, cwd=folder, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It scrapes a run that is well and one that is sick, a Pushgateway with an outcome of each, and sick Jobs."""
    folder = tmp_path_factory.mktemp("prometheus")
    rules = [write_rules(folder / "rules.yaml"), write_rules(folder / "at_once.yaml", at_once=True)]
    with (
        Exporter(SeriesOfARun()) as well,
        Exporter(SeriesOfARun(sick=True)) as sick,
        Exporter(SeriesOfAJob(namespace="ml", failed="thaw-failed", late="thaw-sick")) as jobs,
        Pushgateway(tmp_path_factory.mktemp("pushgateway")) as gateway,
    ):
        for name in ("well", "sick"):
            pushadd_to_gateway(gateway.url, job="thaw", grouping_key={"dataset": name}, registry=outcome())
        scrapes = [
            scrape("ml/thaw", well.url, labels={"namespace": "ml", "pod": "well", "job_name": "thaw-well"}),
            scrape("ml/thaw-sick", sick.url, labels={"namespace": "ml", "pod": "sick", "job_name": "thaw-sick"}),
            scrape("kube-state-metrics", jobs.url, honor_labels=True),
            scrape("pushgateway", gateway.url, honor_labels=True),
        ]
        with Prometheus(folder, scrapes=scrapes, rules=rules) as server:
            server.await_value('thaw_exit_code{dataset="sick"}')
            worse = outcome(
                thaw_exit_code=5, thaw_test_accuracy_ratio=0.4, thaw_last_success_timestamp_seconds=1_700_000_000
            )
            pushadd_to_gateway(gateway.url, job="thaw", grouping_key={"dataset": "sick"}, registry=worse)
            yield server


@pytest.mark.parametrize("alert", list(alerts()))
def test_an_alert_reads_only_series_that_there_are(alert: str) -> None:
    """Of the table, of the process, or of kube-state-metrics."""
    names = names_in(alerts()[alert]["expr"])
    assert names
    assert names <= THAW | PROCESS | KUBE_STATE_METRICS


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_panel_reads_only_series_that_there_are(title: str, query: str) -> None:
    """Of the table or of the process."""
    names = names_in(query)
    assert names
    assert names <= THAW | PROCESS


def test_every_series_of_the_table_is_in_the_dashboard() -> None:
    """What nobody looks at need not be exported."""
    shown = set().union(*(names_in(query) for _, query in QUERIES))
    missing = {series.name for series in SERIES if not any(name.startswith(series.name) for name in shown)}
    assert missing == set()


@pytest.mark.parametrize("page", ["docs/operations.md", "docs/monitoring.md"])
def test_a_page_names_only_series_that_there_are(page: str) -> None:
    """A wildcard stands for some."""
    for name in re.findall(r"\b(thaw_[a-z_]+|kube_job_[a-z_]+)\b(?!\*)", (REPOSITORY / page).read_text()):
        assert name in THAW | KUBE_STATE_METRICS | {series.name for series in SERIES}, name


@pytest.mark.parametrize("alert", list(alerts()))
def test_an_alert_says_how_grave_it_is_and_what_to_do(alert: str) -> None:
    """With the value that it found; and the page has a row on it, with its severity."""
    rule = alerts()[alert]
    severity = rule["labels"]["severity"]
    assert severity in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "action"}
    assert "$value" in rule["annotations"]["description"]
    assert len(re.findall(rf"^\| `{alert}` \| {severity} \| .+ \| .+ \|$", PAGE, re.MULTILINE)) == 1


def test_every_alert_has_a_unit_test() -> None:
    """That names it in what must fire."""
    firing = re.findall(r'alertname="(\w+)"', (REPOSITORY / "tests/alerts_test.yaml").read_text())
    assert set(firing) == set(alerts())


def test_every_alert_fires_and_stays_silent_as_its_unit_test_says(tmp_path: Path) -> None:
    """`promtool test rules`."""
    write_rules(tmp_path / "thaw.rules.yaml")
    shutil.copy(REPOSITORY / "tests/alerts_test.yaml", tmp_path)
    run([program("promtool"), "test", "rules", "alerts_test.yaml"], folder=tmp_path)


def test_the_page_takes_the_rule_file_out_of_the_operators_resource(tmp_path: Path) -> None:
    """Its command gives the groups that the operator has, and promtool finds nothing wrong with them."""
    (command,) = re.findall(r"^    (sed .+) > thaw\.rules\.yaml$", PAGE, re.MULTILINE)
    rules = tmp_path / "thaw.rules.yaml"
    rules.write_text(run(command))
    assert yaml.safe_load(rules.read_text()) == yaml.safe_load((COMPONENT / "alerts.yaml").read_text())["spec"]
    run([program("promtool"), "check", "rules", str(rules)])


def test_the_page_shows_a_configuration_that_prometheus_takes(tmp_path: Path) -> None:
    """For those who have no operator. Debian's Prometheus is built without the discovery of pods, which is left out."""
    (block,) = re.findall(r"```yaml\n(.+?)```", PAGE, re.DOTALL)
    config = yaml.safe_load(block)
    assert config["scrape_configs"][0].pop("kubernetes_sd_configs") == [{"role": "pod"}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    write_rules(tmp_path / "thaw.rules.yaml")
    run([program("promtool"), "check", "config", "prometheus.yml"], folder=tmp_path)


def test_the_names_of_the_table_follow_prometheus_rules() -> None:
    """`promtool check metrics` on what the table makes."""
    registry = CollectorRegistry()
    registry.register(SeriesOfARun())
    run([program("promtool"), "check", "metrics"], text=generate_latest(registry).decode())


def test_the_dashboard_is_the_one_that_is_described() -> None:
    """Otherwise `make dashboard` has been forgotten."""
    assert run([sys.executable, "-m", "k8s.components.monitoring.shared.dashboard"]) == DASHBOARD.read_text()


def test_the_dashboard_names_no_data_source_and_explains_every_panel() -> None:
    """Panels have places that do not overlap."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        own = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not own & cells, panel["title"]
        cells |= own
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) <= variables | {"__rate_interval", "__all"}
    assert set(re.findall(r'"uid": "(.+?)"', DASHBOARD.read_text())) == {"${datasource}", "thaw"}


def test_the_dashboard_explains_every_exit_code() -> None:
    """By its number."""
    text = DASHBOARD.read_text()
    for code in ExitCode:
        assert f'"text": "{int(code)}: ' in text


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_panel_shows_data_of_a_run(title: str, query: str, prometheus: Prometheus) -> None:
    """Its query is PromQL, and a real Prometheus that scrapes a run has an answer, which is a number."""
    values = wait_for(lambda: list(prometheus.query(query).values()), what=f"data of {query}")
    assert all(value == value for value in values)


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


def test_the_rules_load_in_a_real_prometheus(prometheus: Prometheus) -> None:
    """All of them."""
    rules = {rule["name"] for group in prometheus.api("rules")["groups"] for rule in group["rules"]}
    assert set(alerts()) <= rules


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
    kubectl = program("kubectl", way_out="1.27 or newer renders the manifests, without a cluster")
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


def test_the_services_are_asked_for_by_the_target_that_installs_them() -> None:
    """On a desk a missing program is a skip with that word, in CI a failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.devnull)
        patch.delenv("CI", raising=False)
        with pytest.raises(pytest.skip.Exception, match="make setup-services"):
            program("promtool")
        patch.setenv("CI", "true")
        with pytest.raises(pytest.fail.Exception, match="make setup-services"):
            program("promtool")
