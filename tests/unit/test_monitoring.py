"""What operators load into Prometheus and Grafana: rules and a dashboard on metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.runtime.prometheus import PrometheusMetrics, served_registry
from services.runtime.stack_metrics import StackFigures
from services.stack.processes import service_specs

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "keepsake.json"
PROMETHEUS = ROOT / "deploy" / "prometheus"
#: Where `.ci/install-promtool` puts it, too.
PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(Path(sys.executable).parent))
#: The suffixes of what a histogram or counter is shown as.
SUFFIXES = ("_total", "_bucket", "_sum", "_count")


@cache
def metric_names() -> set[str]:
    """The names of all metrics, as a process and the gateway show them."""
    metrics = PrometheusMetrics()
    metrics.follow({})
    families = [*served_registry("a-process", metrics, None).collect(), *StackFigures(up=True).collect()]
    return {
        f"{family.name}{suffix}"
        for family in families
        for suffix in ({"counter": ("_total",), "histogram": SUFFIXES[1:]}.get(family.type, ("",)))
    }


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of the dashboard and of the alerts, with where it is."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for rule in alerts():
        yield rule["alert"], rule["expr"]


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_expression_is_about_metrics_that_there_are() -> None:
    """Given the expressions of dashboard and alerts, I expect each metric in them among those that are served."""
    found = [(where, name) for where, expr in expressions() for name in re.findall(r"\b(?:keepsake|process)_\w+", expr)]

    assert len(found) > 50
    assert [(where, name) for where, name in found if name not in metric_names()] == []


def test_every_metric_has_a_panel() -> None:
    """Given the metrics of Keepsake, I expect each of them in the dashboard, or in an alert."""
    shown = " ".join(expr for _, expr in expressions())
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in metric_names() if name.startswith("keepsake_")}

    assert {name for name in names if name not in shown} == set()


def test_the_dashboard_can_be_loaded() -> None:
    """Given the dashboard, I expect an uid, a choice of the data source, rows, and panels that do not overlap."""
    loaded = dashboard()

    assert loaded["uid"] == "keepsake"
    assert [(chosen["name"], chosen["type"]) for chosen in loaded["templating"]["list"]] == [
        ("datasource", "datasource")
    ]
    panels = loaded["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        *("Answers in time", "Indexing", "Backlog", "Extraction", "Processes")
    ]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert {target["datasource"]["uid"] for panel in panels for target in panel.get("targets", [])} == {"${datasource}"}


def test_every_metric_is_documented() -> None:
    """Given the tables of metrics in the documentation, I expect those that are served, no more and no fewer."""
    rows = [line for page in (ROOT / "docs").glob("*.md") for line in page.read_text().splitlines()]
    cells = [line.split("|")[1] for line in rows if line.startswith("| `keepsake_")]
    documented = {name for cell in cells for name in re.findall(r"`(keepsake_\w+)", cell)}

    served = {name for name in metric_names() if name.startswith("keepsake_")}
    assert documented == {re.sub("_(bucket|sum|count)$", "", name) for name in served}


@pytest.mark.parametrize("alert", [rule["alert"] for rule in alerts()])
def test_every_alert_is_documented(alert: str) -> None:
    """Given an alert, I expect a heading of its name in the documentation, with what it means and what to do."""
    pages = [page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))]
    [section] = [page.partition(f"\n### {alert}\n")[2] for page in pages if f"\n### {alert}\n" in page]

    section = section.partition("\n#")[0]
    assert "Means:" in section
    assert "Do:" in section


@pytest.mark.parametrize("alert", [rule["alert"] for rule in alerts()])
def test_every_alert_is_tested(alert: str) -> None:
    """Given an alert, I expect a series that fires it and one that does not, for promtool."""
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    expected = [
        bool(rule["exp_alerts"]) for test in tests for rule in test["alert_rule_test"] if rule["alertname"] == alert
    ]

    assert {True, False} == set(expected)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian's package prometheus) is not installed")
@pytest.mark.parametrize(
    "command",
    [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml"), ("check", "config", "prometheus.yml")],
    ids=" ".join,
)
def test_promtool_accepts_the_rules(command: tuple[str, ...]) -> None:
    """Given the rules, their tests and the example of a configuration, I expect promtool to find nothing wrong."""
    done = subprocess.run([str(PROMTOOL), *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_scrapes_the_ports_of_ltm_up() -> None:
    """Given the example's targets, I expect the port of each process where LTM_METRICS_PORT is 19400."""
    text = (PROMETHEUS / "prometheus.yml").read_text()
    named = re.findall(r'- "127\.0\.0\.1:(\d+)"  # ([\w-]+)', text)

    specs = service_specs(extracts=True, metrics_port=19_400)
    assert [(str(spec.metrics_port), spec.name) for spec in specs] == named
