"""Which addresses a node tells to others, over the interfaces that machines really have."""

import pytest

from node.network.interfaces import Interface, announced, lan_interfaces, listened_on, local_interfaces, neighbours

LO = (Interface("lo", "127.0.0.1", 8), Interface("lo", "::1", 128))
ETH = (Interface("eth0", "192.168.1.20", 24), Interface("eth0", "fe80::1", 64))
WLAN = Interface("wlan0", "10.0.0.7", 24)
DOCKER = (Interface("docker0", "172.17.0.1", 16), Interface("br-0123456789ab", "172.18.0.1", 16))


def multiaddrs(interfaces):
    return [f"/ip{6 if ':' in i.ip else 4}/{i.ip}/tcp/4040/p2p/Qm" for i in interfaces]


def hosts(interfaces, *more):
    return [address.split("/")[2] for address in announced([*multiaddrs(interfaces), *more], interfaces)]


@pytest.mark.parametrize(
    ("interfaces", "expected"),
    [
        ((*LO, *ETH), ["192.168.1.20"]),
        ((*LO, *DOCKER, *ETH), ["192.168.1.20"]),
        ((*LO, WLAN, *ETH), ["10.0.0.7", "192.168.1.20"]),
        ((*LO, *DOCKER), ["127.0.0.1", "::1"]),
        (LO, ["127.0.0.1", "::1"]),
        ((*LO, Interface("eth0", "172.17.0.2", 16)), ["172.17.0.2"]),
        ((*LO, Interface("eth0", "172.18.0.2", 16)), ["172.18.0.2"]),
        ((*LO, Interface("eth0", "169.254.3.4", 16)), ["169.254.3.4"]),
        ((*LO, Interface("eth0", "169.254.3.4", 16), WLAN), ["10.0.0.7"]),
        ((*LO, Interface("wg0", "10.8.0.2", 24)), ["10.8.0.2"]),
        ((*LO, WLAN, Interface("eth0", "2001:db8::5", 64)), ["10.0.0.7", "2001:db8::5"]),
        ((Interface("docker0", "172.17.0.1", 16),), []),
    ],
    ids=[
        "one card",
        "docker beside it",
        "two cards",
        "offline with docker",
        "offline",
        "inside a container",
        "inside a container of compose",
        "a cable without a router",
        "such a cable and wifi",
        "a tunnel",
        "public ipv6",
        "bridge alone",
    ],
)
def test_addresses_that_others_can_dial_are_told_and_no_others(interfaces, expected):
    assert hosts(interfaces) == expected


@pytest.mark.parametrize(
    "name",
    [
        "docker0",
        "docker_gwbridge",
        "br-0123456789ab",
        "veth12ab@if3",
        "virbr0",
        "cni0",
        "flannel.1",
        "podman1",
        "vmnet8",
    ],
)
def test_bridges_of_containers_and_virtual_machines_are_known_by_name(name):
    assert hosts((*LO, *ETH, Interface(name, "10.9.9.1", 24))) == ["192.168.1.20"]


@pytest.mark.parametrize("name", ["br0", "br-lan", "eth0", "enp3s0", "wlan0", "tailscale0", "bond0", "Ethernet 2"])
def test_ordinary_interfaces_are_not_taken_for_them(name):
    assert hosts((*LO, Interface(name, "10.9.9.1", 24))) == ["10.9.9.1"]


def test_addresses_that_no_interface_carries_are_told_too():
    relayed = "/ip4/45.1.1.1/tcp/4040/p2p/QmA/p2p-circuit/p2p/QmB"

    assert hosts((*LO, *ETH), "/ip4/8.8.4.4/tcp/4040/p2p/Qm", relayed) == ["192.168.1.20", "45.1.1.1", "8.8.4.4"]


def test_tcp_stands_before_what_fewer_can_dial():
    found = announced(["/ip4/10.0.0.7/udp/4040/quic-v1", "/ip4/10.0.0.7/tcp/4040"], [WLAN])

    assert found[0] == "/ip4/10.0.0.7/tcp/4040"


def test_neighbours_find_a_node_where_it_listens():
    here = lan_interfaces((*LO, *DOCKER, *ETH, WLAN))
    assert [i.ip for i in here] == ["192.168.1.20", "10.0.0.7"]

    assert listened_on(["/ip4/0.0.0.0/tcp/0"], here, port=4040) == [("192.168.1.20", 4040), ("10.0.0.7", 4040)]
    assert listened_on(["/ip4/10.0.0.7/tcp/4041"], here, port=9) == [("10.0.0.7", 4041)]
    assert listened_on(["/ip4/127.0.0.1/tcp/4041"], here, port=9) == []
    assert listened_on(["/ip4/0.0.0.0/tcp/0"], here, port=None) == []
    assert neighbours(["192.168.1.99", "8.8.8.8", "172.17.0.9"], here) == ["192.168.1.99"]


def test_this_machines_interfaces_are_read():
    assert "127.0.0.1" in {interface.ip for interface in local_interfaces()}
