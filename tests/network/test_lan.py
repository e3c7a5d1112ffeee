"""What a node tells its neighbours, what it believes of theirs, and real multicast DNS on this machine's network."""

import asyncio
import os
import socket

import pytest

from node.core.events import EventBus
from node.network import lan
from node.network.interfaces import Interface
from node.network.lan import (
    LOOK_S,
    LanNotice,
    Notice,
    find_swarms,
    first_that_answers,
    notice_of,
    properties_of,
    public_name,
    swarms_of,
    tell_neighbours,
)

ME = "Qm" + "A" * 44
NEAR = (Interface("eth0", "192.168.1.20", 24),)
GOOD = {
    b"protocol": b"1",
    b"run": b"poems",
    b"model": b"org/model",
    b"fingerprint": b"0123456789ab",
    b"peers": b"3",
    b"id": ME.encode(),
}


def notice(hosts=("192.168.1.30",), port=4040, peer_id=ME, **changes):
    fields = {"run_name": "poems", "base_model": "org/model", "fingerprint": "0123456789ab" * 5, "num_peers": 3}
    addresses = tuple(f"/ip4/{host}/tcp/{port}/p2p/{peer_id}" for host in hosts)
    return Notice(peer_id=peer_id, addresses=addresses, **{**fields, **changes})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("gpt2", "gpt2"),
        ("/home/anna/secret plans/model.gguf", "model.gguf"),
        ("./mine/model", "model"),
        ("~/models/model/", "model"),
        ("models/of/mine", "mine"),
        ("C:\\Users\\anna\\model.gguf", "model.gguf"),
        ("C:\\model.gguf", "model.gguf"),
    ],
)
def test_the_network_is_told_a_models_name_and_no_path(name, told):
    assert public_name(name) == told


def test_what_is_told_is_what_is_heard():
    properties = {key.encode(): value.encode() for key, value in properties_of(notice()).items()}

    heard = notice_of(properties, ["192.168.1.30"], 4040, NEAR)

    assert heard == notice(fingerprint="0123456789ab")


def test_long_names_fit_into_a_record():
    properties = properties_of(notice(run_name="ü" * 3000, base_model="x" * 3000))

    assert all(len(f"{key}={value}".encode()) <= 255 for key, value in properties.items())


@pytest.mark.parametrize(
    "changes",
    [
        {b"protocol": b"one"},
        {b"protocol": None},
        {b"peers": b"-1"},
        {b"peers": b"1" * 9000},
        {b"peers": "٣".encode()},
        {b"fingerprint": b"../../../etc"},
        {b"fingerprint": b"0123456789ab\n"},
        {b"id": b"Qm"},
        {b"id": ME.encode() + b"/../x"},
        {b"id": b"\xff\xfe"},
    ],
)
def test_a_service_that_says_something_else_is_passed_over(changes):
    assert notice_of(GOOD, ["192.168.1.30"], 4040, NEAR) is not None

    assert notice_of({**GOOD, **changes}, ["192.168.1.30"], 4040, NEAR) is None


@pytest.mark.parametrize(
    ("hosts", "port"),
    [([], 4040), (["8.8.8.8"], 4040), (["127.0.0.1"], 22), (["192.168.1.30"], 0), (["192.168.1.30"], None)],
)
def test_nobody_is_sent_to_an_address_outside_the_network(hosts, port):
    assert notice_of(GOOD, hosts, port, NEAR) is None


def test_names_of_neighbours_cannot_control_a_terminal_or_fill_it():
    heard = notice_of(
        {**GOOD, b"run": b"\x1b[2J\r\nx" + b"y" * 5000, b"model": b"\xff\x00z"}, ["192.168.1.30"], 4040, NEAR
    )

    assert heard.run_name.isprintable()
    assert heard.base_model.isprintable()
    assert len(heard.run_name) <= 80


def test_nodes_of_one_swarm_are_one_line_and_a_liar_another():
    other = "Qm" + "B" * 44
    liar = "Qm" + "C" * 44
    swarms = swarms_of(
        [
            notice(num_peers=2),
            notice(("192.168.1.31",), peer_id=other),
            notice(("192.168.1.32",), peer_id=liar, run_name="prose", num_peers=1),
        ]
    )

    assert [(swarm.run_name, swarm.num_peers, len(swarm.addresses)) for swarm in swarms] == [
        ("poems", 3, 2),
        ("prose", 1, 1),
    ]


async def test_of_several_addresses_one_is_taken_at_which_somebody_listens():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    there = f"/ip4/127.0.0.1/tcp/{server.sockets[0].getsockname()[1]}/p2p/{ME}"
    nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{ME}"
    async with server:
        assert await first_that_answers([nobody, there]) == there

    assert await first_that_answers([nobody]) is None


@pytest.fixture
def here(monkeypatch):
    """A network of this machine alone: nothing that a test tells leaves it."""
    alone = (Interface("lo", "127.0.0.1", 8),)
    monkeypatch.setattr(lan, "lan_interfaces", lambda _: alone)
    return alone


async def test_a_swarm_is_found_while_it_is_told_and_not_when_it_has_gone(here):
    mine = "0123456789ab"

    async def looked(look_s=LOOK_S):
        return [swarm for swarm in await find_swarms(here, look_s=look_s) if swarm.fingerprint == mine]

    own = LanNotice(here)
    await own.tell(notice((here[0].ip,)))
    (found,) = await looked()
    await own.tell(notice((here[0].ip,), num_peers=4))
    (grown,) = await looked()
    await own.close()
    gone = await looked(1.0)

    assert (found.run_name, found.base_model, found.num_peers) == ("poems", "org/model", 3)
    assert found.addresses == (f"/ip4/{here[0].ip}/tcp/4040/p2p/{ME}",)
    assert grown.num_peers == 4
    assert gone == []


async def test_a_network_that_cannot_be_told_is_one_fault_and_no_end(here):
    events, told = EventBus(), []
    events.subscribe(told.append)

    def describe(interfaces):
        raise OSError(101, "Network is unreachable")

    task = asyncio.create_task(tell_neighbours(describe, events))
    while not told:
        await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()

    assert "Network is unreachable" in told[0].what
    assert "--no-lan" in told[0].hint


def open_sockets():
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(link) and os.readlink(link).startswith("socket:") for link in links)


async def test_a_node_that_only_its_own_machine_can_reach_opens_no_socket(here):
    own, before = LanNotice(here), open_sockets()

    await own.tell(notice(hosts=()))

    assert open_sockets() == before
    await own.close()


async def test_sockets_are_closed_when_a_node_ends_while_it_tells(here):
    before = open_sockets()
    task = asyncio.create_task(tell_neighbours(lambda _: notice((here[0].ip,)), EventBus()))
    while open_sockets() == before:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task], timeout=5)

    assert task.cancelled()
    assert open_sockets() == before


async def test_a_port_of_another_program_is_one_fault_and_no_end(here):
    events, told = EventBus(), []
    events.subscribe(told.append)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        try:
            other.bind(("0.0.0.0", 5353))
        except OSError:
            pytest.skip("another program on this machine speaks multicast DNS")
        before = open_sockets()
        task = asyncio.create_task(tell_neighbours(lambda _: notice((here[0].ip,)), events))
        while not told:
            await asyncio.sleep(0.01)
        assert not task.done()
        assert open_sockets() == before
        task.cancel()

    assert "Address already in use" in told[0].what
