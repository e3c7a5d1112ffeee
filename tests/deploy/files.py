"""What stands in `deploy/`: its files, and the command lines of `potluck` in them."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
ADDRESS = "/ip4/192.168.1.20/tcp/4040/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"


def documents(path):
    """The YAML documents of a file."""
    return [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]


def compose():
    return documents(DEPLOY / "compose.yaml")[0]


def kubernetes(kind, name):
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for document in documents(path):
            if document.get("kind") == kind and document["metadata"]["name"] == name:
                return document
    raise AssertionError(f"no {kind} {name}")


def recorded(folder, script, *arguments, env=None):
    """Run a shell script to its end with a `potluck` that only says how it was called; return that."""
    program = folder / "bin" / "potluck"
    program.parent.mkdir(exist_ok=True)
    program.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", str(script), *map(str, arguments)],
        env={"PATH": f"{program.parent}:{os.environ['PATH']}", **(env or {})},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("Waiting")]


def node_script(folder, pod, *, address="", data=False):
    """How the pods' script calls `potluck`."""
    text = kubernetes("ConfigMap", "potluck-script")["data"]["node.sh"]
    store = folder / pod / "data"
    store.mkdir(parents=True)
    if data:
        (store / "mine.jsonl").write_text("{}\n")
    script = folder / "node.sh"
    (folder / "address").write_text(address)
    script.write_text(
        text.replace("data=/var/lib/potluck/data", f"data={store}").replace("/swarm/address", f"{folder}/address")
    )
    return recorded(folder, script, env={"POD_NAME": pod})


def service_arguments(path):
    """The arguments that an environment file of a systemd unit offers, also those commented out."""
    text = path.read_text(encoding="utf-8")
    return [
        shlex.split(shlex.split(found)[0]) for found in re.findall(r'^(?:# )?POTLUCK_ARGS=(".*")$', text, re.MULTILINE)
    ]


def console_lines(path):
    """The command lines of `potluck` in a page's blocks of code."""
    for block in re.findall(r"```(?:console|sh|powershell)\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(
                r"(?:^|[$#>] |-- |\s)(potluck (?:start|join|status|stop|export|plan|init|eval|chat|doctor|coordinator|bootstrap|config|demo)\b.*)",
                line,
            )
            if found:
                yield shlex.split(found[1].replace("…", ADDRESS.removeprefix("/ip4/")), comments=True)[1:]
