"""The arrows between the rooms, as ARCHITECTURE.md draws them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LEVELS = {
    "node.v1": 0,
    "node.core": 1,
    "node.trust": 2,
    "node.config": 3,
    "node.network": 3,
    "node.data": 4,
    "node.model": 4,
    "node.host": 4,
    "node.training": 5,
    "node.averaging": 6,
    "node.control": 6,
    "node.export": 6,
    "node.observe": 6,
    "node.holding": 5,
    "node.weights": 5,
    "node.specs": 5,
    "node.agreed": 6,
    "node.syncing": 6,
    "node.base_model": 6,
    "node.pipeline": 7,
    "node.assembly": 8,
    "node.board": 7,
    "node.listening": 7,
    "node.result": 7,
    "node.greeting": 6,
    "node.enlist": 7,
    "node.coordination": 8,
    "node.choosing": 9,
    "node.swarm": 7,
    "node.rounds": 8,
    "node.upkeep": 9,
    "node.evaluation": 10,
    "node.staged": 9,
    "node.loaded": 10,
    "node.gathering": 11,
    "node.bootstrap": 7,
    "coordinator.v1": 0,
    "coordinator.address": 0,
    "coordinator.signing": 1,
    "coordinator.client": 2,
    "coordinator.bounds": 1,
    "coordinator.run_state": 2,
    "coordinator.store": 3,
    "coordinator.tally": 0,
    "coordinator.access": 1,
    "coordinator.tls": 1,
    "coordinator.secret_files": 0,
    "coordinator.watchers": 3,
    "coordinator.hub": 4,
    "coordinator.metrics": 5,
    "coordinator.page": 5,
    "coordinator.servicer": 5,
    "coordinator.server": 6,
    "coordinator.cli": 7,
    "coordinator.operator_cli": 8,
    "coordinator.__main__": 9,
    "coordinator.web": 1,
    "coordinator.listen": 0,
    "coordinator.scrape": 0,
    "node.daemon": 12,
    "node.dashboard": 12,
    "node.demo": 12,
    "node.doctor": 12,
    "node.cli": 13,
    "node.__main__": 14,
}
"""Imports go from a higher number to a lower one, or stay in their room."""

ALLOWED_SIDEWAYS = {("node.network", "node.config"), ("node.averaging", "node.export")}

ONLY_IN = {
    "hivemind": ("node.network",),
    "grpc": ("node.control", "node.v1", "coordinator"),
    "transformers": ("node.model", "node.export"),
    "peft": ("node.model", "node.export"),
    "bitsandbytes": ("node.model",),
    "datasets": ("node.data",),
    "ifaddr": ("node.network",),
    "segno": ("node.observe",),
    "starlette": (),
    "uvicorn": (),
    "zeroconf": ("node.network",),
    "prometheus_client": ("node.observe",),
    "tensorboard": ("node.observe",),
    "wandb": ("node.observe",),
    "trackio": ("node.observe",),
    "torch": (
        "node.model",
        "node.training",
        "node.averaging",
        "node.pipeline",
        "node.export",
        "node.network",
        "node.host",
        "node.assembly",
        "node.result",
        "node.rounds",
        "node.staged",
    ),
}
NO_ASYNCIO = ("node.core", "node.model", "node.data", "node.config", "node.trust")


def sources():
    for package in ("node", "coordinator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "_pb2" not in path.name:
                yield path, ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module):
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 else module


def imports(path):
    """Yield (module, is inside a function) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in inside


ALL = [(path, module, name, inside) for path, module in sources() for name, inside in imports(path)]


def test_every_room_has_a_level():
    rooms = {room_of(module) for _, module in sources()} - {"node", "coordinator"}
    assert rooms == set(LEVELS), f"tell LEVELS and ARCHITECTURE.md: {rooms ^ set(LEVELS)}"


def test_imports_only_point_down():
    wrong = [
        f"{module} -> {name}"
        for _, module, name, _ in ALL
        if name.startswith("node.")
        and room_of(name) != room_of(module)
        and LEVELS[room_of(name)] >= LEVELS.get(room_of(module), 99)
        and (room_of(module), room_of(name)) not in ALLOWED_SIDEWAYS
    ]
    assert not wrong, wrong


def test_the_core_imports_the_standard_library_only():
    allowed = {*sys.stdlib_module_names, "node"}
    wrong = [f"{m} -> {n}" for _, m, n, _ in ALL if room_of(m) == "node.core" and n.split(".")[0] not in allowed]
    wrong += [
        f"{m} -> {n}"
        for _, m, n, _ in ALL
        if room_of(m) == "node.core" and n.startswith("node.") and room_of(n) != "node.core"
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_rooms(library):
    rooms = ONLY_IN[library]
    wrong = [
        f"{module} -> {name}"
        for _, module, name, _ in ALL
        if name.split(".")[0] == library
        and room_of(module) not in rooms
        and not module.startswith("coordinator")
        and room_of(module) != "node.cli"
    ]
    assert not wrong, wrong


def test_pure_rooms_know_no_event_loop():
    wrong = [f"{m} -> {n}" for _, m, n, _ in ALL if room_of(m) in NO_ASYNCIO and n.split(".")[0] == "asyncio"]
    assert not wrong, wrong


COMMAND_LINE = ("node.cli", "coordinator.cli", "coordinator.operator_cli")


def test_imports_stand_at_the_top_but_in_the_command_line():
    wrong = [f"{m}: {n}" for _, m, n, inside in ALL if inside and room_of(m) not in COMMAND_LINE]
    assert not wrong, wrong


def test_the_coordinator_never_imports_the_node():
    assert not [f"{m} -> {n}" for _, m, n, _ in ALL if m.startswith("coordinator") and n.split(".")[0] == "node"]


def test_there_is_no_circle():
    edges = {}
    modules = {module for _, module in sources()}
    for _, module, name, _ in ALL:
        target = name if name in modules else name.rpartition(".")[0]
        if target in modules and target != module:
            edges.setdefault(module, set()).add(target)
    done, path = set(), []

    def visit(module):
        assert module not in path, f"circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in done:
            return
        path.append(module)
        for target in sorted(edges.get(module, ())):
            visit(target)
        path.pop()
        done.add(module)

    for module in sorted(modules):
        visit(module)


def test_files_stay_small():
    long = [
        f"{path.relative_to(ROOT)}: {n}" for path, _ in sources() if (n := len(path.read_text().splitlines())) > 400
    ]
    assert not long, long


def test_nothing_is_unpickled():
    forbidden = ("pickle.load", "torch.load(", "trust_remote_code=True", "yaml.load(", "marshal.load", "eval(compile")
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path, _ in sources()
        for word in forbidden
        if word in path.read_text(encoding="utf-8")
    ]
    assert not found, found


def test_the_stubs_are_those_of_the_sources(tmp_path):
    protos = sorted(str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto").rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={tmp_path}", *protos]
    subprocess.run(command, check=True)
    for made in tmp_path.rglob("*_pb2.py"):
        kept = ROOT / made.relative_to(tmp_path)
        assert made.read_text() == kept.read_text(), f"{kept.name} is stale: run `make proto`"


def test_the_diagram_in_the_docs_is_the_table():
    from node.core.lifecycle import diagram

    assert diagram() in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_help_answers_without_torch():
    program = (
        "import sys\nfrom click.testing import CliRunner\nfrom node.cli.main import root\n"
        "result = CliRunner().invoke(root, ['--help'])\nassert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'transformers', 'hivemind', 'peft', 'numpy', 'datasets', 'grpc', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_every_call_of_the_protocols_is_answered():
    from coordinator.servicer import CoordinatorServicer, OperatorServicer
    from coordinator.v1 import coordinator_pb2
    from node.control.server import ControlServer
    from node.v1 import control_pb2

    ours = {"Coordinator": CoordinatorServicer, "Operator": OperatorServicer, "Control": ControlServer}
    services = {
        name: service
        for module in (coordinator_pb2, control_pb2)
        for name, service in module.DESCRIPTOR.services_by_name.items()
    }
    assert services.keys() == ours.keys()
    for name, service in services.items():
        missing = [method.name for method in service.methods if method.name not in vars(ours[name])]
        assert missing == [], f"{name}: what gRPC's compiler wrote would raise NotImplementedError"
