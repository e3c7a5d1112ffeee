"""Where pages and endpoints listen, as people write it."""

import pytest

from coordinator.listen import WrongAddress, is_local, parse_listen


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("4042", ("127.0.0.1", 4042)),
        (":4042", ("127.0.0.1", 4042)),
        ("127.0.0.1:4041", ("127.0.0.1", 4041)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:0", ("localhost", 0)),
        ("pc.lan:0", ("pc.lan", 0)),
    ],
)
def test_an_address_without_a_host_is_this_machine(text, parsed):
    assert parse_listen(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "host",
        "host:",
        "127.0.0.1",
        "recipe.yaml",
        "1.2.3.4:65536",
        "x:99999",
        "1.2.3.4:-1",
        "1.2.3.4:٣",
        "a:²",
        "/ip4/1.2.3.4/tcp/5",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(WrongAddress, match="is not HOST:PORT"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.9", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("pc.lan", False)],
)
def test_loopback_alone_is_local(host, local):
    assert is_local(host) is local
