"""The number of pods, as KEDA decides it by the metrics: its schema, and what its queries ask for."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from itertools import chain
from pathlib import Path
from typing import Any

import fakeredis
import jsonschema
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.runtime.prometheus import PrometheusMetrics, served_registry
from services.runtime.settings import load_settings
from services.runtime.stack_metrics import StackFigures, StackReader
from services.stack.processes import INDEXER, WORKER
from tests.acceptance.kubernetes_manifests import (
    Manifest,
    needs_kubectl,
    of_kind,
    workloads,
)
from tests.acceptance.native_host import ROOT
from tests.support import PATIENCE_S
from tests.unit.test_monitoring import PROMTOOL

pytestmark = needs_kubectl


def scaled_objects() -> dict[str, Manifest]:
    return of_kind("overlays/production", "ScaledObject")


def queries() -> dict[str, list[str]]:
    """The expressions that KEDA asks Prometheus for, by the workload that it scales."""
    return {
        name: [trigger["metadata"]["query"] for trigger in each["spec"]["triggers"]]
        for name, each in scaled_objects().items()
    }


def test_the_scaled_objects_are_valid() -> None:
    """Given what KEDA is to do, I expect its schema to hold, and the workloads that it scales to be there."""
    schema = json.loads((ROOT / "tests" / "data" / "kubernetes" / "keda_scaled_object.json").read_text())

    assert set(scaled_objects()) == {WORKER, INDEXER}
    for name, scaled in scaled_objects().items():
        jsonschema.Draft202012Validator(schema).validate(scaled)
        target = workloads("overlays/production")[scaled["spec"]["scaleTargetRef"]["name"]]
        assert (target["kind"], target["metadata"]["name"]) == ("Deployment", name)
        # Or each apply would set back what KEDA has decided.
        assert "replicas" not in target["spec"]


def served() -> str:
    """The metrics that a worker, which answered one search in time and one too late, and a gateway serve."""
    metrics = PrometheusMetrics()
    for outcome, answered in (("ok", 1_000.1), ("expired", 1_000.7)):
        times = {"pushed": 1_000.0, "taken": 1_000.0, "answered": answered}
        metrics.observe("request", {"type": "search", "outcome": outcome, "times": times, "deadline_ms": 600})

    async def scraped() -> StackFigures:
        async with fakeredis.FakeAsyncRedis() as client:
            return await StackReader(load_settings(), client).read(PATIENCE_S)

    stack = CollectorRegistry()
    stack.register(asyncio.run(scraped()))
    return b"".join(generate_latest(each) for each in (served_registry(WORKER, metrics, None), stack)).decode()


def test_every_query_is_about_series_that_there_are() -> None:
    """Given the selectors of the queries, I expect a series for each: of that name, with labels of these values."""
    selectors = [
        found for query in chain(*queries().values()) for found in re.findall(r"\b(keepsake_\w+)(?:{([^}]*)})?", query)
    ]
    series = [
        (sample.name, sample.labels) for family in text_string_to_metric_families(served()) for sample in family.samples
    ]

    assert len(selectors) > 5
    for name, labels in selectors:
        wanted = re.findall(r'(\w+)=~?"([^"]*)"', labels)
        assert [
            found
            for found, its in series
            if found == name and all(re.fullmatch(value, its.get(label, "")) for label, value in wanted)
        ], f"{name}{{{labels}}}"


@pytest.mark.skipif(not PROMTOOL, reason="promtool is not installed")
def test_the_queries_ask_for_as_many_replicas_as_are_needed(tmp_path: Path) -> None:
    """Given a hundred searches a second on two workers, I expect more asked for while they are late, and only then."""
    assert PROMTOOL
    (rate, late), (backlog,) = queries()[WORKER], queries()[INDEXER]
    rules = [{"record": name, "expr": expr} for name, expr in (("rate", rate), ("late", late), ("backlog", backlog))]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "keda", "rules": rules}]}))
    worker = 'keepsake_requests{}_total{{type="search",instance="{}"{}}}'
    info = 'keepsake_process_info{{process="long-term-memory-worker",instance="{}"}}'

    def series(late_a_minute: int) -> list[dict[str, str]]:
        counted = {f"a{late_a_minute}": 3000, "b": 3000}
        return [
            *(
                {"series": worker.format("", pod, ',outcome="ok"'), "values": f"0+{number}x10"}
                for pod, number in counted.items()
            ),
            *({"series": worker.format("_late", pod, ""), "values": f"0+{late_a_minute}x10"} for pod in counted),
            *({"series": info.format(pod), "values": "1x10"} for pod in counted),
            # Two gateways tell the same of the one stack.
            *({"series": f'keepsake_backlog_messages{{instance="{pod}"}}', "values": "9000x10"} for pod in "cd"),
            *(
                {
                    "series": f'keepsake_queue_messages{{queue="index",state="waiting",instance="{pod}"}}',
                    "values": "100x10",
                }
                for pod in "cd"
            ),
        ]

    def expect(expr: str, *values: float) -> dict[str, Any]:
        return {
            "expr": f"sum({expr})",
            "eval_time": "8m",
            "exp_samples": [{"labels": "{}", "value": value} for value in values],
        }

    tests = [
        {"interval": "1m", "input_series": series(29), "promql_expr_test": [expect("late")]},
        {
            "interval": "1m",
            "input_series": series(31),
            "promql_expr_test": [expect("late", 3.0), expect("rate", 100.0), expect("backlog", 9_100.0)],
        },
    ]
    (tmp_path / "test.yml").write_text(json.dumps({"rule_files": ["rules.yml"], "tests": tests}))

    done = subprocess.run(
        [PROMTOOL, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
