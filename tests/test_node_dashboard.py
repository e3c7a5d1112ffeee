"""What a node's page is told, from its status and its events."""

import asyncio

import pytest

from node.core.errors import ConfigError
from node.core.events import Evaluated, EventBus, MicrobatchDone, Stepped
from node.dashboard import LossCurves, NodeSource, appended, dashboard, is_slow, run_view, shown_model
from node.v1 import control_pb2


def stepped(version):
    return Stepped(version, 1e-3, 1.0, "ab", 0.0)


def status(*names, version=3):
    answer = control_pb2.GetStatusResponse(
        fingerprint="ab", run_name="r", home="/home/a b", addresses=["/ip4/1.2.3.4/tcp/1/p2p/Qm"], num_stages=2,
        version=version, max_steps=9,
    )  # fmt: skip
    for name in names:
        answer.peers.add(
            peer_id=f"Qm{name}", name=name, state="training", tokens_given=100, version=version, stop_stage=2
        )
    return answer


def test_a_steps_loss_is_the_mean_of_its_microbatches_by_their_labels():
    curves = LossCurves(lambda: 9.0)
    curves(MicrobatchDone(0, 2.0, 100, 90, 0.1))
    curves(MicrobatchDone(1, 4.0, 100, 10, 0.1))

    curves(stepped(1))
    curves(stepped(2))
    curves(Evaluated(2, 2.5, 40))

    assert curves.training == [(1, pytest.approx(2.2)), (2, 9.0)], "without data of its own it is the swarm's"
    assert curves.held_out == [(2, 2.5)]


def test_a_curve_stays_short_and_keeps_its_latest_point():
    points = []
    for step in range(5000):
        points = appended(points, (step, 1.0))
    assert len(points) <= 2000
    assert points[-1] == (4999, 1.0)
    assert [p[0] for p in points] == sorted(p[0] for p in points)


def test_another_lineage_takes_the_place_of_what_came_after_it():
    assert appended([(1, 1.0), (2, 2.0), (3, 3.0)], (2, 5.0)) == [(1, 1.0), (2, 5.0)]


def test_the_view_has_shares_and_commands_that_survive_a_shell():
    view = run_view(status("a", "b"), training=[], held_out=[])

    assert [peer.share for peer in view.peers] == [0.5, 0.5]
    assert view.commands.stop == "potluck stop --home '/home/a b'"
    assert view.commands.join == "potluck join /ip4/1.2.3.4/tcp/1/p2p/Qm"
    assert view.loss is None
    assert view.seconds_left is None


def test_of_a_path_to_the_model_only_its_name_is_shown():
    assert shown_model("/home/anna/models/qwen.gguf") == "qwen.gguf"
    assert shown_model("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert shown_model("./models/" + "b1" * 32) == "b1" * 20


def test_a_peer_is_slow_far_below_the_usual_pace_or_steps_behind():
    def peer(pace=0.0, version=5, state="training"):
        return control_pb2.PeerStatus(stage_tokens_per_s=pace, version=version, state=state)

    assert is_slow(peer(10), usual=100, newest=5)
    assert is_slow(peer(100, version=3), usual=100, newest=5)
    assert not is_slow(peer(60), usual=100, newest=5)
    assert not is_slow(peer(0), usual=100, newest=5), "not measured yet"
    assert not is_slow(peer(0, version=0, state="loading"), usual=100, newest=5)


async def test_one_who_left_stays_on_the_page_until_it_is_back():
    shown = [status("a", "b")]
    source = NodeSource(lambda: shown[0], LossCurves(lambda: None))

    def marks():
        source._latest = None
        return {peer.name: peer.mark for peer in source.snapshot().runs[0].peers}

    assert marks() == {"a": "", "b": ""}
    shown[0] = status("a")
    assert marks() == {"a": "", "b": "left"}
    assert marks() == {"a": "", "b": "left"}
    shown[0] = status("a", "b")
    assert marks() == {"a": "", "b": ""}


async def test_however_many_look_the_node_is_asked_once_a_second_and_never_by_nobody():
    asked = []

    def ask():
        asked.append(1)
        return status("a")

    source = NodeSource(ask, LossCurves(lambda: None))
    assert not asked
    streams = [source.changes() for _ in range(10)]

    await asyncio.gather(*(anext(stream) for stream in streams))

    assert len(asked) == 1


async def test_the_last_state_is_shown_when_the_node_ends():
    shown = [status("a")]
    source = NodeSource(lambda: shown[0], LossCurves(lambda: None))
    stream = source.changes()
    await anext(stream)

    shown[0] = status("a", version=9)
    source.end()
    rest = [snapshot async for snapshot in stream]

    assert [run.version for snapshot in rest for run in snapshot.runs] == [9]
    assert rest[0].runs[0].hints[0].kind == "finished"


async def test_an_address_that_is_none_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(ConfigError, match=r"--dashboard: 'recipe\.yaml' is not HOST:PORT") as refused:
        async with dashboard("recipe.yaml", control_pb2.GetStatusResponse, EventBus(), tmp_path, print):
            pass
    assert "--dashboard=127.0.0.1:4041" in refused.value.hint
