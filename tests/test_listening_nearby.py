"""What a node tells the local network of itself: at which addresses neighbours find it."""

import pytest

from node.config.local import LocalSettings
from node.config.recipe import Recipe
from node.core.types import SwarmView
from node.listening import lan_notice
from node.network.interfaces import Interface

ME = "Qm" + "A" * 44
CARD, WIFI = Interface("eth0", "192.168.1.20", 24), Interface("wlan0", "10.0.0.7", 24)


@pytest.mark.parametrize(
    ("listen", "announce", "port", "told"),
    [
        ("/ip4/0.0.0.0/tcp/4040", (), 4040, ["192.168.1.20/tcp/4040", "10.0.0.7/tcp/4040"]),
        ("/ip4/0.0.0.0/tcp/0", (), 4055, ["192.168.1.20/tcp/4055", "10.0.0.7/tcp/4055"]),
        ("/ip4/10.0.0.7/tcp/4040", (), 4040, ["10.0.0.7/tcp/4040"]),
        ("/ip4/127.0.0.1/tcp/4040", (), 4040, []),
        ("/ip4/0.0.0.0/tcp/0", (), None, []),
        ("/ip6/::/tcp/4040", (), 4040, []),
        ("/ip4/0.0.0.0/tcp/4040", ("/ip4/10.0.0.9/tcp/5000",), 4040, ["10.0.0.9/tcp/5000"]),
        ("/ip4/0.0.0.0/tcp/4040", ("/ip4/45.1.1.1/tcp/5000",), 4040, ["192.168.1.20/tcp/4040", "10.0.0.7/tcp/4040"]),
        ("/ip4/127.0.0.1/tcp/4040", ("/dns4/anna.example/tcp/5000",), 4040, []),
    ],
)
def test_neighbours_are_told_where_they_reach_a_node(listen, announce, port, told):
    settings = LocalSettings(listen=(listen,), announce=announce)
    recipe = Recipe.model_validate({"base_model": "org/model"})

    notice = lan_notice(recipe, "0123456789ab" * 5, settings, port, SwarmView(ME, ()), (CARD, WIFI))

    assert list(notice.addresses) == [f"/ip4/{where}/p2p/{ME}" for where in told]
