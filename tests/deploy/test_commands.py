"""Every command line of `potluck` in deploy/ and in its docs is one that the real program takes; ports agree."""

import json
import os
import re
import subprocess

import click
import pytest

from coordinator.cli import DEFAULT_PORT as DEFAULT_PORT_OF_COORDINATOR
from coordinator.cli import METRICS_LISTEN as METRICS_OF_COORDINATOR
from deploy.files import (
    ADDRESS,
    DEPLOY,
    ROOT,
    compose,
    console_lines,
    documents,
    kubernetes,
    node_script,
    recorded,
    service_arguments,
)
from node.cli.main import root
from node.cli.running import METRICS_LISTEN
from node.config.local import LocalSettings
from node.listening import DEFAULT_PORT

METRICS_PORT, COORDINATORS_METRICS = (int(a.rpartition(":")[2]) for a in (METRICS_LISTEN, METRICS_OF_COORDINATOR))
COORDINATOR = f"coordinator://192.168.1.5:7300/{'t' * 32}#{'ab' * 32}"
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md") if list(console_lines(path)))


def parse(arguments, recipe):
    """Parse as the program does, without running; a recipe that does not exist here is one that does."""
    arguments = [str(recipe) if a.endswith("recipe.yaml") else a for a in arguments]
    command, context, name = root, click.Context(root, info_name="potluck"), ""
    while isinstance(command, click.Group):
        name, command, arguments = command.resolve_command(context, arguments)
        if isinstance(command, click.Group):
            context = click.Context(command, parent=context, info_name=name)
    parsed = command.make_context(name, list(arguments), parent=context).params
    if name not in ("start", "join"):
        return name, parsed
    LocalSettings(**{k: v for k, v in parsed.items() if k in LocalSettings.model_fields and v not in (None, ())})
    return name, parsed


@pytest.fixture
def recipe(tmp_path):
    return DEPLOY / "kubernetes" / "recipe.yaml"


def test_compose_founds_with_one_node_and_joins_with_the_other(recipe, tmp_path):
    services = compose()["services"]
    (tmp_path / "address").write_text(COORDINATOR)
    script, file = services["node-1"]["entrypoint"]
    assert services["node-2"]["entrypoint"] == [script, file]

    def called(node):
        path = DEPLOY / "docker" / script
        return parse(recorded(tmp_path, path, tmp_path / "address", *services[node]["command"]), recipe)

    name, parsed = called("node-1")
    assert (name, parsed["coordinator"]) == ("start", COORDINATOR)
    name, parsed = called("node-2")
    assert (name, parsed["address"]) == ("join", COORDINATOR)


def test_compose_serves_a_coordinator_that_writes_its_address_for_the_nodes(recipe):
    services = compose()["services"]
    serving = services["coordinator"]

    name, parsed = parse(serving["command"], recipe)

    assert name == "serve"
    assert str(parsed["address_file"]) == services["node-1"]["entrypoint"][1]
    assert parsed["public_address"] == f"coordinator:{DEFAULT_PORT_OF_COORDINATOR}"
    assert parse(serving["healthcheck"]["test"][2:], recipe)[1]["state"] == parsed["state"]


def test_the_coordinators_pod_serves_where_its_service_is(recipe):
    pod = kubernetes("StatefulSet", "potluck-coordinator")["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["port"] for port in kubernetes("Service", "potluck-coordinator")["spec"]["ports"]}
    rules = kubernetes("NetworkPolicy", "potluck-coordinator")["spec"]["ingress"]

    name, parsed = parse(pod["args"], recipe)

    assert name == "serve"
    assert parsed["public_address"] == f"potluck-coordinator:{DEFAULT_PORT_OF_COORDINATOR}"
    assert parsed["metrics"] == f"0.0.0.0:{COORDINATORS_METRICS}"
    assert ports == {"grpc": DEFAULT_PORT_OF_COORDINATOR, "metrics": COORDINATORS_METRICS}
    assert {port["port"] for rule in rules for port in rule["ports"]} == set(ports.values())


def test_the_image_is_healthy_when_the_node_answers(recipe):
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    (command,) = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.MULTILINE)

    program, *arguments = json.loads(command)

    assert program == "potluck"
    assert parse(arguments, recipe)[0] == "status"


def test_the_first_pod_founds_and_the_others_join_or_lend(recipe, tmp_path):
    (tmp_path / "1").mkdir(), (tmp_path / "2").mkdir(), (tmp_path / "3").mkdir()

    founds = parse(node_script(tmp_path / "1", "potluck-0"), recipe)
    lends = parse(node_script(tmp_path / "2", "potluck-1", address=ADDRESS), recipe)
    trains = parse(node_script(tmp_path / "3", "potluck-10", address=ADDRESS, data=True), recipe)

    assert (founds[0], lends[0], trains[0]) == ("start", "join", "join")
    assert (lends[1]["lend"], lends[1]["data"]) == (True, ())
    assert not trains[1]["lend"]
    assert len(trains[1]["data"]) == 1
    assert lends[1]["address"] == trains[1]["address"] == ADDRESS
    assert founds[1]["metrics"] == "0.0.0.0:4042"


@pytest.mark.parametrize(("pod", "awaited"), [("potluck-0", "data-is-complete"), ("potluck-1", "address")])
def test_a_pod_begins_when_what_it_needs_is_there(tmp_path, pod, awaited):
    text = kubernetes("ConfigMap", "potluck-script")["data"]["wait.sh"]
    script = tmp_path / "wait.sh"
    script.write_text(
        text.replace("/var/lib/potluck", str(tmp_path)).replace("/swarm", str(tmp_path)).replace("sleep 2", "sleep 0.1")
    )
    waits = subprocess.Popen(["sh", str(script)], env={"PATH": os.environ["PATH"], "POD_NAME": pod})

    with pytest.raises(subprocess.TimeoutExpired):
        waits.wait(0.4)
    (tmp_path / awaited).write_text(ADDRESS)

    assert waits.wait(10) == 0
    assert (tmp_path / "data").is_dir()


def test_the_coordinators_unit_serves(recipe):
    text = (DEPLOY / "systemd" / "system" / "potluck-coordinator.service").read_text()
    (line,) = re.findall(r"^ExecStart=\S+/potluck (.*)$", text, re.MULTILINE)

    assert parse(line.split(), recipe)[0] == "serve"


@pytest.mark.parametrize("kind", ["system", "user"])
def test_what_the_units_offer_can_be_started(recipe, kind):
    offered = service_arguments(DEPLOY / "systemd" / kind / "node.env")

    assert len(offered) >= 2
    assert {parse(arguments, recipe)[0] for arguments in offered} == {"start", "join"}


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_docs_are_taken(recipe, page):
    lines = list(console_lines(ROOT / "docs" / page))

    assert lines
    for line in lines:
        parse(line, recipe)


def test_ports_agree_between_all_files():
    services = compose()["services"]
    image = (DEPLOY / "docker" / "Dockerfile").read_text()
    container = kubernetes("StatefulSet", "potluck")["spec"]["template"]["spec"]["containers"][0]
    script = kubernetes("ConfigMap", "potluck-script")["data"]["node.sh"]
    nodes, coordinators = (
        job["static_configs"][0]["targets"]
        for job in documents(DEPLOY / "prometheus" / "prometheus.yml")[0]["scrape_configs"]
    )
    policy = kubernetes("NetworkPolicy", "potluck")["spec"]["ingress"]
    both = {DEFAULT_PORT, METRICS_PORT}

    assert {int(port) for port in re.search(r"^EXPOSE (.*)$", image, re.MULTILINE)[1].split()} == {
        *both,
        DEFAULT_PORT_OF_COORDINATOR,
        COORDINATORS_METRICS,
    }
    assert {port["containerPort"] for port in container["ports"]} == both
    assert {port["port"] for port in kubernetes("Service", "potluck")["spec"]["ports"]} == both
    assert {port["port"] for rule in policy for port in rule["ports"]} == both
    assert f"/tcp/{DEFAULT_PORT} " in script
    assert f"--metrics 0.0.0.0:{METRICS_PORT}" in script
    assert services["node-1"]["ports"] == [f"{DEFAULT_PORT}:{DEFAULT_PORT}"]
    assert set(nodes) == {f"{name}:{METRICS_PORT}" for name in ("node-1", "node-2")}
    assert coordinators == [f"coordinator:{COORDINATORS_METRICS}"]
    for name in ("node-1", "node-2"):
        assert services[name]["command"][-1] == f"0.0.0.0:{METRICS_PORT}"


def test_grafana_asks_the_prometheus_of_the_same_file():
    services = compose()["services"]
    provisioning = DEPLOY / "grafana" / "provisioning"
    source = documents(provisioning / "datasources" / "prometheus.yaml")[0]["datasources"][0]
    provider = documents(provisioning / "dashboards" / "potluck.yaml")[0]["providers"][0]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])

    assert source["url"] == "http://prometheus:9090"
    assert services["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    assert provider["options"]["path"] == mounts["./grafana/dashboards"]
    for volume in (v for s in services.values() for v in s["volumes"] if v.startswith(".")):
        path = DEPLOY / volume.split(":")[0]
        assert path.exists() or path.is_relative_to(DEPLOY / "data"), volume
