"""Who gets in, and what a caller learns who does not: over real TLS, with real keys."""

import time
from pathlib import Path
from random import Random

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hostile.mutate import damage
from light_nodes import LightNode, make_facts, make_run
from serving_here import RUN, coordinator

from coordinator import access, servicer
from coordinator.address import CoordinatorAddress
from coordinator.client import CoordinatorError, CoordinatorRefused, CoordinatorUnavailable, open_channel
from coordinator.signing import signed_call
from coordinator.tls import Certificate
from coordinator.v1 import coordinator_pb2 as pb

METHODS = [
    f"/coordinator.v1.{service.name}/{method.name}"
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
OTHERS = ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/no/such"]
MUTATED = 600


@pytest.fixture
async def here(tmp_path):
    async with coordinator(tmp_path / "coordinator") as here:
        yield here


@pytest.fixture
async def anna(here, tmp_path):
    node = LightNode(tmp_path, here.address)
    await node.join()
    yield node
    await node.client.close()


async def call(here, method, data=b"", token=None):
    """Call with any bytes; return (code, details, everything else that came back)."""
    channel = await open_channel(here.address)
    headers = (("authorization", f"bearer {token}"),) if token else ()
    async with channel:
        sent = channel.unary_unary(method)(data, metadata=headers, timeout=5)
        try:
            answer = await sent
        except grpc.aio.AioRpcError as error:
            about = str(error.initial_metadata()) + str(error.trailing_metadata())
            return error.code(), error.details(), about
        return grpc.StatusCode.OK, "", answer


def signed(node, method, request, at_s=None, nonce=None):
    request.stamp.CopyFrom(pb.Stamp(at_s=at_s or time.time(), nonce=nonce or Random().randbytes(16), protocol=1))
    return signed_call(node.identity, method, request.SerializeToString()).SerializeToString()


def heartbeat(**changes):
    fields = {"fingerprint": RUN, "record": b"r", "facts": make_facts()} | changes
    return pb.HeartbeatRequest(**fields)


@pytest.mark.parametrize("method", [*METHODS, *OTHERS])
async def test_a_stranger_learns_nothing_whatever_he_calls(here, anna, method):
    for token in (None, "wrong" * 8, ""):
        code, details, about = await call(here, method, b"\xff" * 100, token)

        assert (code, details) == (grpc.StatusCode.UNAUTHENTICATED, "")
        assert not [word for word in ("potluck", "coordinator", "demo", "python") if word in about.lower()]


async def test_without_the_gatekeeper_a_stranger_would_learn(here, anna, monkeypatch):
    monkeypatch.setattr(access, "_same", lambda given, expected: True)

    code, _, answer = await call(here, "/coordinator.v1.Coordinator/ListRuns")

    assert code is grpc.StatusCode.OK
    assert b"demo" in answer


async def test_a_member_steers_nothing_and_the_operator_does(here, anna, tmp_path):
    pause = "/coordinator.v1.Operator/Pause"
    operator = CoordinatorAddress.parse((tmp_path / "coordinator" / "operator.address").read_text())
    assert (await call(here, pause, token=here.address.token))[0] is grpc.StatusCode.PERMISSION_DENIED
    assert not here.hub.runs[RUN].is_paused

    assert (await call(here, pause, token=operator.token))[0] is grpc.StatusCode.OK
    assert here.hub.runs[RUN].is_paused


async def test_health_and_reflection_answer_those_who_have_a_token(here):
    code, _, answer = await call(here, OTHERS[0], token=here.address.token)
    assert code is grpc.StatusCode.OK
    assert health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING

    channel = await open_channel(here.address)
    async with channel:
        asked = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        headers = (("authorization", f"bearer {here.address.token}"),)
        stream = channel.stream_stream(OTHERS[1])(iter([asked]), metadata=headers, timeout=5)
        answer = reflection_pb2.ServerReflectionResponse.FromString(await stream.read())
    named = {service.name for service in answer.list_services_response.service}
    assert {"coordinator.v1.Coordinator", "coordinator.v1.Operator"} <= named


async def test_a_call_is_taken_once_and_for_its_own_method_and_caller(here, anna, tmp_path):
    token, method = here.address.token, "/coordinator.v1.Coordinator/Heartbeat"
    good = signed(anna, "Heartbeat", heartbeat())
    assert (await call(here, method, good, token))[0] is grpc.StatusCode.OK

    code, details, _ = await call(here, method, good, token)
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "this call was made before")

    other = pb.SignedCall.FromString(signed(anna, "Leave", heartbeat()))
    forged = pb.SignedCall.FromString(signed(anna, "Heartbeat", heartbeat()))
    bert = LightNode(tmp_path, here.address, "bert")
    forged.public_key = signed_call(bert.identity, "Heartbeat", b"").public_key
    for wrong in (other, forged, pb.SignedCall(), pb.SignedCall(body=b"x", public_key=b"y", signature=b"z")):
        code, details, _ = await call(here, method, wrong.SerializeToString(), token)
        assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "the signature does not hold")
    assert set(here.hub.runs[RUN].members) == {anna.peer_id}
    assert here.hub.tally.refused["signature"] == 4


async def test_without_nonces_a_call_could_be_made_twice(here, anna, monkeypatch):
    monkeypatch.setattr(access.Nonces, "is_new", lambda *_: True)
    token, method = here.address.token, "/coordinator.v1.Coordinator/Heartbeat"
    good = signed(anna, "Heartbeat", heartbeat())

    for _ in range(2):
        assert (await call(here, method, good, token))[0] is grpc.StatusCode.OK


@pytest.mark.parametrize("off_s", [-90.0, 90.0, float("nan"), float("inf")])
async def test_a_wrong_clock_is_told_what_to_do(here, anna, off_s):
    data = signed(anna, "Heartbeat", heartbeat(), at_s=time.time() + off_s)

    code, details, _ = await call(here, "/coordinator.v1.Coordinator/Heartbeat", data, here.address.token)

    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert details.endswith("set it")


async def flood(node):
    for _ in range(200):
        await node.beat()


async def test_who_calls_too_often_waits_and_others_do_not(here, anna, tmp_path):
    with pytest.raises(CoordinatorRefused, match="too many calls: wait") as refused:
        await flood(anna)
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert here.hub.tally.refused["rate"] == 1

    bert = LightNode(tmp_path, here.address, "bert")
    for _ in range(20):
        assert (await bert.beat()).is_known
    await bert.client.close()


async def test_without_the_limit_nobody_waits(here, anna, monkeypatch):
    monkeypatch.setattr(access.Limiter, "wait_s", lambda *_: 0.0)

    await flood(anna)


BAD = [
    ({"record": b""}, "record"),
    ({"record": bytes(8001)}, "record"),
    ({"facts": make_facts(state="sleeping")}, "state"),
    ({"facts": make_facts(first_stage=3, stop_stage=1)}, "stages"),
    ({"facts": make_facts(stop_stage=65)}, "stop_stage"),
    ({"facts": make_facts(tokens_per_s=float("inf"))}, "tokens_per_s"),
    ({"facts": make_facts(loss=float("nan"))}, "loss"),
    ({"facts": make_facts(tokens=2**63)}, "tokens"),
    ({"facts": make_facts(base_hash="not hex")}, "base_hash"),
    ({"facts": make_facts(name="n" * 65)}, "name"),
    ({"facts": make_facts(addresses=["no multiaddr"])}, "addresses"),
    ({"facts": make_facts(addresses=["/ip4/1.2.3.4"] * 17)}, "addresses"),
]


@pytest.mark.parametrize(("changes", "named"), BAD)
async def test_what_is_out_of_bounds_is_refused_by_name(here, anna, changes, named):
    data = signed(anna, "Heartbeat", heartbeat(**changes))

    code, details, _ = await call(here, "/coordinator.v1.Coordinator/Heartbeat", data, here.address.token)

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert named in details
    assert anna.peer_id not in here.hub.runs[RUN].members


async def test_names_lose_what_no_terminal_should_see(here, anna):
    await anna.beat(name="a\x1b[31m\u202eb\n")

    assert here.hub.runs[RUN].members[anna.peer_id].facts.name == "a[31mb"


async def test_damaged_calls_get_an_answer_and_leave_it_serving(here, anna, monkeypatch):
    monkeypatch.setattr(access.Limiter, "wait_s", lambda *_: 0.0)
    rng, token = Random(7), here.address.token
    seeds = {
        "Join": pb.JoinRequest(run=make_run(), fingerprint=RUN),
        "Heartbeat": heartbeat(),
        "ReportRound": pb.ReportRoundRequest(fingerprint=RUN, version=1, outcome="committed", num_members=1),
        "Leave": pb.LeaveRequest(fingerprint=RUN),
    }
    seen = set()
    channel = await open_channel(here.address)
    async with channel:
        for number in range(MUTATED):
            method, request = rng.choice(list(seeds.items()))
            if number % 2:  # the envelope, or what was signed
                data = damage(signed(anna, method, request), rng)
            else:
                request.stamp.CopyFrom(pb.Stamp(at_s=time.time(), nonce=rng.randbytes(16), protocol=1))
                body = damage(request.SerializeToString(), rng)
                data = signed_call(anna.identity, method, body).SerializeToString()
            sent = channel.unary_unary(f"/coordinator.v1.Coordinator/{method}")
            try:
                await sent(data, metadata=(("authorization", f"bearer {token}"),), timeout=5)
                seen.add("OK")
            except grpc.aio.AioRpcError as error:
                seen.add(error.code().name)

    assert "INVALID_ARGUMENT" in seen
    assert not seen & {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert (await anna.join()).run.name == "demo"


async def test_another_certificate_than_the_addresss_is_not_spoken_to(here, tmp_path):
    address = str(here.address)
    other = LightNode(tmp_path, address[:-64] + "00" * 32)

    with pytest.raises(CoordinatorError, match="certificate"):
        await other.join()


async def test_ones_own_certificate_is_judged_by_the_machines_authorities(tmp_path):
    own = Certificate.load_or_create(tmp_path / "own")
    async with coordinator(tmp_path / "coordinator", certificate=own, names_itself=False) as here:
        assert here.address.sha256 is None
        node = LightNode(tmp_path, here.address)
        with pytest.raises(CoordinatorUnavailable):  # nobody vouches for it here
            await node.join()
        await node.client.close()


async def test_plain_text_says_so_unless_it_stays_on_this_machine(tmp_path):
    said = []
    async with coordinator(tmp_path / "a", is_plain=True, say=said.append) as here:
        node = LightNode(tmp_path, here.address)
        assert (await node.join()).run.name == "demo"
        await node.client.close()
    assert not said[:1] or "nothing is encrypted" not in said[0]
    assert str(here.address).startswith("coordinator+insecure://")


def test_limits_are_the_documented_ones():
    text = (Path(__file__).parent.parent.parent / "docs" / "coordinator.md").read_text()

    assert "8 calls a second of a peer, 16 of a connection; 64 kB a call" in text
    made = servicer.CoordinatorServicer(None)
    assert (made._of_peer._per_s, made._of_connection._per_s) == (8, 16)
    assert servicer.MAX_BODY_BYTES == 64_000
