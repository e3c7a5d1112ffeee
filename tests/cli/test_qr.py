"""The join line as a QR code: for a person at a terminal that is wide enough, and for nobody else."""

import pytest
import segno

from node.cli.running import _Introduction
from node.core.events import Listening
from node.observe.qr import qr_code
from node.v1 import control_pb2

ADDRESS = "/ip4/192.168.1.20/tcp/4040/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
LINE = f"potluck join {ADDRESS}"
PAIRS = {" ": (1, 1), "▀": (0, 1), "▄": (1, 0), "█": (0, 0)}


def test_the_blocks_are_the_codes_own_modules():
    lines = qr_code(LINE, columns=200).splitlines()

    modules = [[PAIRS[block][half] for block in line] for line in lines for half in (0, 1)]
    expected = [list(row) for row in segno.make(LINE, micro=False, error="l", boost_error=False).matrix]
    inner = [row[2:-2] for row in modules[2 : 2 + len(expected)]]
    assert inner == expected
    assert max(len(line) for line in lines) <= 60
    assert len(lines) <= 30, "it fits on a screen"


def test_a_terminal_that_is_too_narrow_gets_none():
    assert qr_code(LINE, columns=30) == ""


@pytest.mark.parametrize("columns", [0, 30, 100])
def test_a_node_shows_it_where_a_person_looks_and_there_is_room(columns):
    said = []
    introduction = _Introduction(control_pb2.GetStatusResponse, said.append, columns=columns)

    introduction(Listening("Qm", (ADDRESS,)))

    assert LINE in "\n".join(said)
    assert any("█" in text for text in said) == (columns == 100)
