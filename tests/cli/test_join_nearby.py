"""`potluck join` without an address: which swarm is meant."""

import sys

import click
import pytest
from click.testing import CliRunner

from node.cli.nearby import _choose, describe
from node.core.errors import ConfigError
from node.network.lan import LanSwarm


def swarm(name, peers=2, protocol=1):
    address = f"/ip4/192.168.1.20/tcp/4040/p2p/Qm{name}"
    return LanSwarm(name, "org/model", "0123456789ab", protocol, peers, (address,))


@pytest.fixture
def at_a_terminal(monkeypatch):
    """Let a choice be made as a person makes it, who types `answer`."""

    def choose(swarms, answer, *, yes=False):
        @click.command()
        def ask():
            monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
            monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
            click.echo(f"chosen: {_choose(swarms, yes=yes).run_name}")

        return CliRunner().invoke(ask, input=answer)

    return choose


def test_a_person_chooses_by_number(at_a_terminal):
    result = at_a_terminal([swarm("poems"), swarm("prose", 1)], "2\n")

    assert "1  poems: org/model, 2 peers, run 0123456789ab" in result.output
    assert "2  prose: org/model, 1 peer, " in result.output
    assert "chosen: prose" in result.output


def test_a_number_that_is_not_there_is_asked_again(at_a_terminal):
    result = at_a_terminal([swarm("poems"), swarm("prose")], "3\n0\n1\n")

    assert result.output.count("is not in the range") == 2
    assert "chosen: poems" in result.output


def test_the_only_one_is_joined_without_a_question_if_so_told():
    assert _choose([swarm("poems")], yes=True).run_name == "poems"


@pytest.mark.parametrize(
    ("names", "yes"), [(["poems"], False), (["poems", "prose"], True), (["poems", "prose"], False)]
)
def test_without_a_terminal_the_lines_to_paste_are_named(names, yes):
    with pytest.raises(ConfigError) as refusal:
        _choose([swarm(name) for name in names], yes=yes)

    for name in names:
        assert f"potluck join /ip4/192.168.1.20/tcp/4040/p2p/Qm{name}" in refusal.value.message
    assert ("--yes" in refusal.value.hint) == (len(names) == 1)


def test_a_swarm_of_another_version_says_so():
    assert "another version of Potluck (protocol 7)" in describe(swarm("poems", protocol=7))
    assert "another version" not in describe(swarm("poems"))
