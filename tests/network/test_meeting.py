"""A public meeting point: nodes find each other by it, of any run, and strangers cannot fill it."""

import subprocess
import sys
from contextlib import AsyncExitStack

import pytest
from hivemind.dht.validation import DHTRecord
from hivemind.utils import get_dht_time
from test_membership import RUN, Node

from node.core.types import PeerId
from node.network import meeting
from node.network.dht import RECORD_LIFETIME_S
from node.network.dht_bounds import RecordSerializer, dht_key
from node.network.meeting import AnyRunValidator, open_meeting_point
from node.network.processes import _WireAddress, start_p2p
from node.network.records import encode_peer, records_key
from node.trust.identity import Identity

OTHER = "cd" * 32


@pytest.mark.swarm
async def test_nodes_that_know_a_meeting_point_alone_find_those_of_their_own_run(tmp_path):
    async with AsyncExitStack() as stack:
        identity = Identity.load_or_create(tmp_path / "point" / "identity.key")
        running = await start_p2p(
            tmp_path / "point", identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"], relays_for_others=True
        )
        stack.push_async_callback(running.close)
        validator = AnyRunValidator()
        point = await open_meeting_point(running, validator)
        stack.push_async_callback(point.shutdown)
        (where,) = await running.addresses()
        nodes = [await Node.start(tmp_path / name, stack, run) for name, run in (("a", RUN), ("b", RUN), ("c", OTHER))]

        for node in nodes:
            assert await node.membership.meet([where]) == [running.peer_id]
            assert await node.membership.announce(node.peer([await node.address]))

        assert validator.count() == (2, 3)
        a, b, c = nodes
        await b.membership.view()
        both = {a.identity.peer_id, b.identity.peer_id}
        assert {peer.peer_id for peer in (await b.membership.view()).peers} == both
        assert {peer.peer_id for peer in (await c.membership.view()).peers} == {c.identity.peer_id}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    return Node(None, Identity.load_or_create(tmp_path_factory.mktemp("node") / "identity.key"), None)


def record(node, run, *, key=None, value=None, subkey=None):
    now = get_dht_time()
    value = encode_peer(node.peer(), fingerprint=run, at_s=now, identity=node.identity) if value is None else value
    packed = [RecordSerializer.dumps(item) for item in (value, subkey or node.identity.peer_id)]
    return DHTRecord(dht_key(key or records_key(run)), packed[1], packed[0], now + RECORD_LIFETIME_S)


def test_only_records_that_are_signed_and_under_their_own_runs_key_get_in(node):
    validator = AnyRunValidator()

    assert validator.validate(record(node, RUN))
    assert not validator.validate(record(node, RUN, key=records_key(OTHER)))
    assert not validator.validate(record(node, RUN, subkey=PeerId("QmSomebodyElse")))
    assert not validator.validate(record(node, OTHER, value=b"garbage"))
    assert not validator.validate(record(node, OTHER, value=bytes(10_000)))
    assert not validator.validate(record(node, "x" * 65))
    assert validator.count() == (1, 1)


def test_there_is_room_for_so_many_runs_and_for_new_ones_when_old_ones_are_gone(node, monkeypatch):
    monkeypatch.setattr(meeting, "MAX_RUNS", 3)
    validator = AnyRunValidator()

    let_in = [validator.validate(record(node, f"{number:064x}")) for number in range(5)]
    assert let_in == [True, True, True, False, False]

    for run in validator._runs.values():
        run._until = dict.fromkeys(run._until, 0.0)  # as after their lifetime
    assert validator.validate(record(node, f"{9:064x}"))
    assert validator.count() == (1, 1)


def test_an_address_through_a_relay_is_written_as_libp2p_reads_it():
    """0x04 ip4, 0x06 tcp, 0x01a5 p2p with a multihash, 0x0122 p2p-circuit: https://github.com/multiformats/multiaddr."""
    relay = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"

    written = _WireAddress(f"/ip4/45.1.1.10/tcp/4040/p2p/{relay}/p2p-circuit").to_bytes()

    assert written[:8] == bytes([4, 45, 1, 1, 10, 6, 4040 >> 8, 4040 & 255])
    assert written[8:13] == bytes([0xA5, 0x03, 34, 0x12, 0x20])
    assert written[-2:] == bytes([0xA2, 0x02])
    assert len(written) == 8 + 3 + 34 + 2
    with pytest.raises(ValueError, match="goes on"):
        _WireAddress(f"/ip4/45.1.1.10/tcp/4040/p2p/{relay}/p2p-circuit/tcp/1")


def test_a_meeting_point_loads_nothing_that_models_need():
    forbidden = "transformers", "peft", "bitsandbytes"
    program = (
        "import sys\n"
        "class Never:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        assert name.split('.')[0] not in {forbidden}, name\n"
        "sys.meta_path.insert(0, Never())\n"
        "import node.bootstrap, node.cli.bootstrap\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-600:]
