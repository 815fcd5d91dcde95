"""Every query of the Grafana dashboards, on real stores; and that they are dashboards Grafana can load."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from ferryman.devices.fleet.alerts import kept
from ferryman.devices.fleet.collector.metrics import CERTIFICATE_EXPIRES, Metrics
from ferryman.devices.fleet.store.store import Store, open_store
from ferryman.runtime.contracts.alert import Alert
from tests.support.alerts import SECOND, Scene, sample
from tests.support.interpreters import ROOT
from tests.support.postgresql import new_database

FOLDER = ROOT / "docs" / "deploy" / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
SQL = {"ferryman-fleet-postgresql": "postgresql", "ferryman-fleet-sqlite": "sqlite"}
_METRIC = re.compile(r"\b(ferryman_[a-z_]+|process_[a-z_]+|up)\b(?!=)")


def queries(dashboard: dict[str, Any]) -> dict[str, str]:
    """Title of a panel, or name of a variable -> its SQL."""
    found = {}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            found[panel["title"]] = target.get("rawSql") or target["queryText"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]
            found[f"${variable['name']}"] = query if isinstance(query, str) else query["queryText"]
    return found


def filled(sql: str, now_ms: int) -> str:
    """With Grafana's variables replaced, as it does."""
    values = {
        "__from": str(now_ms - 24 * 3_600_000),
        "__to": str(now_ms),
        "metric": "latency_ms",
        "device:sqlstring": "'pi','other'",
    }
    return re.sub(r"\$\{([^}]+)\}", lambda found: values[found[1]], sql)


@pytest.fixture(scope="module", params=sorted(SQL))
def seeded(request, tmp_path_factory) -> Iterator[tuple[str, Store, int]]:
    dialect = SQL[request.param]
    with contextlib.ExitStack() as stack:
        folder: Path = tmp_path_factory.mktemp("grafana")
        where = folder / "store.db" if dialect == "sqlite" else stack.enter_context(new_database())
        store = stack.enter_context(contextlib.closing(open_store(where)))
        scene = Scene(store, time.time_ns() - 600 * SECOND)
        scene.status("pi", "other", site="lab")
        scene.status("gone", online=False)
        for _ in range(3):
            for device in ("pi", "other"):
                scene.send(device, sample(latency_ms=12.5, errors=1.0, temperature_c=51.0, disk_free_mb=900.0))
            scene.wait(10)
        scene.garble("pi", 2)
        for metric in ("latency_ms", "inferences", "errors"):
            scene.roll("pi", metric, "aaaa", 3, [2.0, 4.0])
        alert = Alert(device="pi", rule="disk", severity="warning", text="full", since_ns=scene.now_ns)
        kept.change(store, [alert], [], scene.now_ns)
        yield request.param, store, (scene.now_ns + 600 * SECOND) // 10**6


@pytest.fixture(scope="module")
def answers(seeded) -> dict[str, list[tuple[Any, ...]]]:
    name, store, now_ms = seeded
    # No colon may be taken for a parameter.
    return {
        title: [tuple(row) for row in store.read(text(filled(sql, now_ms).replace(":", "\\:")))]
        for title, sql in queries(DASHBOARDS[name]).items()
    }


def test_every_query_answers_with_what_is_in_the_store(answers):
    assert all(answers.values()), {title: rows for title, rows in answers.items() if not rows}
    assert answers["Devices online"] == [(2,)]
    assert answers["Devices offline"] == [(1,)]
    assert answers["New in quarantine"] == [(2,)]
    assert [float(value) for (value,) in answers["Inferences (whole hours)"]] == [6.0]
    assert [row[1:] for row in answers["Table of alerts"]] == [("pi", "disk", "warning", "full")]
    assert answers["Alerts that hold"] == [(1,)]
    assert [row[1:] for row in answers["$metric: mean an hour"]] == [("pi", 3.0)]
    assert [row[1:] for row in answers["$metric: least and most an hour, of all devices chosen"]] == [(2.0, 4.0)]
    assert {row[1:] for row in answers["$metric: every sample"]} == {("pi", 12.5), ("other", 12.5)}
    assert len(answers["$metric: every sample"]) == 6
    assert {row[0]: row[1] for row in answers["Devices"]} == {"gone": "offline", "pi": "online", "other": "online"}
    assert {row[4] for row in answers["Devices"]} == {"lab", None}
    assert answers["Newest sample"][0][2:] == (12.5, 20.0, 1.0, None, 51.0, None, 900.0, None)
    assert [row[0] for row in answers["$device"]] == ["gone", "other", "pi"]
    assert [row[0] for row in answers["$metric"]] == ["errors", "inferences", "latency_ms"]


def test_times_are_times_of_the_store(seeded, answers):
    _, _, now_ms = seeded
    for title in ("$metric: mean an hour", "$metric: every sample", "Quarantine"):
        first = answers[title][0][0]
        seconds = first if isinstance(first, int) else first.timestamp()
        assert now_ms / 1000 - 5 * 3600 < seconds <= now_ms / 1000, title


def test_both_databases_show_the_same():
    postgresql, sqlite = (queries(DASHBOARDS[name]) for name in SQL)
    assert list(postgresql) == list(sqlite)


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_a_dashboard_is_one_that_grafana_can_load(name):
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == name
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    sources = {f"${{{key}}}": one["query"] for key, one in variables.items() if one["type"] == "datasource"}
    assert len(sources) == 1
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        for asked in (panel, *panel["targets"]):
            assert sources[asked["datasource"]["uid"]] == asked["datasource"]["type"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for one in panels:
        for other in panels:
            assert one is other or not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(panels)))
    assert used <= set(variables)


def overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
    return not beside and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]


def metric_names(tmp_path: Path) -> set[str]:
    with contextlib.closing(open_store(tmp_path / "store.db")) as store:
        registry: CollectorRegistry = Metrics(store).registry
        found = {"up", CERTIFICATE_EXPIRES}
        for family in registry.collect():
            found |= {sample.name for sample in family.samples} | {family.name}
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ())
            found |= {f"{family.name}{suffix}" for suffix in suffixes}
        return found


@pytest.mark.parametrize("name", ["grafana/ferryman-collectors.json", "compose/prometheus/rules.yml"])
def test_every_metric_is_one_that_a_collector_has(tmp_path, name):
    path = FOLDER.parent / name
    used = set(_METRIC.findall(" ".join(re.findall(r'(?:"expr": "|expr: )(.*)', path.read_text()))))
    assert len(used) > 3
    assert used <= metric_names(tmp_path)
