"""What hivemind's client has to bear in a process that lives for weeks."""

import asyncio

import pytest
from hivemind.p2p import P2PContext, PeerID, ServicerBase

from node.v1 import round_pb2

pytestmark = pytest.mark.swarm


class Echo(ServicerBase):
    """Answers at once."""

    async def rpc_word(self, request: round_pb2.RoundMessage, context: P2PContext) -> round_pb2.RoundReceipt:
        return round_pb2.RoundReceipt(is_known=True)


@pytest.fixture
def pair(two_nodes):
    return [running for _, running in two_nodes]


async def test_a_call_that_is_cancelled_as_its_answer_comes_leaves_the_others_answered(pair):
    host, guest = pair
    await Echo().add_p2p_handlers(host.p2p)
    await guest.connect((await host.addresses())[0])
    stub = Echo.get_stub(guest.p2p, PeerID.from_base58(host.peer_id))
    calls = guest.p2p._client.control._pending_calls

    call = asyncio.ensure_future(stub.rpc_word(round_pb2.RoundMessage()))
    while not calls:
        await asyncio.sleep(0)
    (call_id,) = calls.keys()
    # as it is between the moment that a call is cancelled and the one in which its task is told
    calls[call_id] = asyncio.get_running_loop().create_future()
    calls[call_id].cancel()
    await asyncio.sleep(0.5)
    call.cancel()

    answer = await asyncio.wait_for(stub.rpc_word(round_pb2.RoundMessage()), 5)
    assert answer.is_known


async def test_two_that_dial_each_other_at_once_are_both_connected(pair):
    a, b = pair
    address_a, address_b = (await a.addresses())[0], (await b.addresses())[0]

    for _ in range(10):
        await asyncio.gather(a.connect(address_b), b.connect(address_a))

    assert b.peer_id in {str(peer.peer_id) for peer in await a.p2p.list_peers()}
