"""Keys, peer ids, and what a signature holds for."""

import dataclasses
import json
import stat

import pytest
from hivemind.p2p import PeerID

from node.core.errors import ConfigError, ProtocolViolation
from node.trust.identity import Identity, SignedBytes, verify
from node.trust.seal import MAX_SEAL_BYTES, ModelIdentity, RunSeal, open_seal, seal_run


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    return Identity.load_or_create(tmp_path_factory.mktemp("home") / "identity.key")


def seal():
    model = ModelIdentity(digest="ab" * 32, config={"hidden_size": 64})
    return RunSeal(fingerprint="cd" * 32, recipe="{}", model=model, founded_at_s=1.0)


def test_the_peer_id_is_the_one_that_libp2p_makes_of_the_same_file(identity):
    assert PeerID.from_identity(identity.path.read_bytes()).to_base58() == identity.peer_id


def test_the_key_is_kept_and_only_its_owner_can_read_it(identity):
    assert Identity.load_or_create(identity.path).peer_id == identity.peer_id
    assert stat.S_IMODE(identity.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content", [b"", b"\x08\x00\x12", b"\x08\x00\x12\x05abc", b"x" * 40_000, b"\x08\x00\x12\x03abc"]
)
def test_a_file_that_is_no_key_is_refused_by_name(tmp_path, content):
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        Identity.load_or_create(path)


def test_a_signature_holds_for_its_body_and_its_purpose_only(identity):
    signed = identity.sign("one", b"body")

    assert verify("one", signed) == identity.peer_id
    assert verify("two", signed) is None
    assert verify("one", dataclasses.replace(signed, body=b"bodY")) is None
    altered = signed.signature[:-1] + bytes([signed.signature[-1] ^ 1])
    assert verify("one", dataclasses.replace(signed, signature=altered)) is None
    assert verify("one", dataclasses.replace(signed, public_key=b"not a key")) is None
    assert verify("one", dataclasses.replace(signed, public_key=b"x" * 5000)) is None


def test_a_run_can_be_handed_on_by_anybody_and_changed_by_nobody(identity):
    sealed = seal_run(seal(), identity)

    opened = open_seal(sealed.signed, sender="somebody")

    assert opened.founder == identity.peer_id
    assert opened.seal == seal()
    changed = dataclasses.replace(sealed.signed, body=sealed.signed.body.replace(b"64", b"65"))
    with pytest.raises(ProtocolViolation, match="not signed") as caught:
        open_seal(changed, sender="somebody")
    assert caught.value.peer_id == "somebody"


def test_the_body_of_a_run_is_its_seal_in_one_form_only(identity):
    body = seal_run(seal(), identity).signed.body

    assert body == json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    assert json.loads(body)["model"]["digest"] == "ab" * 32


def test_a_run_may_be_as_long_as_its_bound(identity):
    body = seal_run(seal(), identity).signed.body

    assert open_seal(identity.sign("run", body.ljust(MAX_SEAL_BYTES)), sender="somebody").seal == seal()
    with pytest.raises(ProtocolViolation, match="larger than"):
        open_seal(identity.sign("run", body.ljust(MAX_SEAL_BYTES + 1)), sender="somebody")


@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 50_000, b'{"format":0}', b"\xff\xfe", b"x" * (MAX_SEAL_BYTES + 1)])
def test_a_signed_body_that_is_no_run_is_refused(identity, body):
    with pytest.raises(ProtocolViolation, match="The run that somebody sent") as caught:
        open_seal(identity.sign("run", body), sender="somebody")
    assert caught.value.peer_id == "somebody"


def test_a_signature_over_something_else_is_no_run(identity):
    signed = identity.sign("peer-record", seal_run(seal(), identity).signed.body)
    with pytest.raises(ProtocolViolation, match="not signed"):
        open_seal(SignedBytes(signed.body, signed.public_key, signed.signature), sender="somebody")
