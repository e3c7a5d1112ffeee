"""The names in docs/protocol.md are those that nodes serve."""

import re
from pathlib import Path

from coordinator.v1 import coordinator_pb2
from node.core.versions import namespace
from node.network import door

PAGE = (Path(__file__).parent.parent.parent / "docs" / "protocol.md").read_text()


def test_the_pages_streams_are_those_of_the_code():
    space = namespace("<run>", "")

    assert {door.HELLO, door.STATE} <= set(re.findall(r"`(\S+)`", PAGE))
    assert space == "potluck/1/<run>/"
    assert {"round/exchange", "round::RoundTransport.rpc_word", "stages", "weights"} == {
        name.removeprefix(space) for name in re.findall(r"`(potluck/\d+/<run>/\S+)`", PAGE)
    }


def test_the_page_names_every_call_of_the_coordinator():
    services = coordinator_pb2.DESCRIPTOR.services_by_name

    for method in (*services["Coordinator"].methods, *services["Operator"].methods):
        assert f"`{method.name}`" in PAGE
