"""What the page shows, and what it advises. Pure."""

import json
import math

import pytest
from pages import JOIN, peer, run

from coordinator.web.hints import is_rising, missing_stages
from coordinator.web.snapshot import MAX_PEERS, MAX_POINTS, PeerView, RunView, Snapshot, thinned


def kinds(shown):
    return [hint.kind for hint in shown.hints]


def test_hostile_text_is_cut_and_loses_what_is_not_printable():
    name = PeerView(id="Qm", name="\u202eeve\x1b[2J\n" + "界" * 500).name

    assert name.startswith("eve[2J界")
    assert len(name) <= 64
    assert name.isprintable()


def test_numbers_that_are_none_never_reach_the_page():
    hostile = PeerView(id="Qm", name="x", loss=math.nan, tokens_per_s=math.inf, tokens_given=1 << 80, share=-3.0)
    shown = Snapshot(runs=(run(peers=[hostile], training=[(1, math.nan), (2, 2.0)], loss=math.inf),))

    text = shown.model_dump_json()

    assert "NaN" not in text
    assert "Infinity" not in text
    (answer,) = json.loads(text)["runs"]
    assert answer["training"] == [[2, 2.0]]
    assert answer["peers"][0]["loss"] is None
    assert answer["peers"][0]["tokens_given"] <= 1 << 53


def test_lists_are_cut_instead_of_refused():
    crowd = run(peers=[peer(number) for number in range(1000)], training=[(step, 1.0) for step in range(100_000)])

    assert len(crowd.peers) == MAX_PEERS
    assert len(crowd.training) == MAX_POINTS
    assert len(crowd.model_dump_json()) < 200_000


def test_a_thinned_curve_keeps_its_ends():
    points = [(step, 0.5) for step in range(12_345)]
    kept = thinned(points)
    assert len(kept) == MAX_POINTS
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert thinned(points[:7]) == tuple(points[:7])


def test_one_who_is_alone_is_shown_how_to_bring_in_another():
    (hint,) = run(peers=[peer(1, is_me=True)]).hints

    assert hint.kind == "alone"
    assert hint.command == JOIN
    assert hint.shows_code


def test_a_stage_that_only_one_who_left_holds_has_no_holder():
    shown = run(peers=[peer(1, is_me=True, stop_stage=2), peer(2, first_stage=2, mark="left")])

    assert missing_stages(shown) == [2, 3]
    assert kinds(shown)[0] == "missing"
    assert shown.hints[0].title == "Stages 2, 3 have no holder"
    assert shown.hints[0].command.endswith("--lend")


def test_a_held_out_loss_that_stays_above_its_lowest_value_advises_to_stop():
    rising = [(0, 3.0), (10, 2.5), (20, 2.4), (30, 2.45), (40, 2.5), (50, 2.6)]

    hint = next(hint for hint in run(held_out=rising).hints if hint.kind == "rising")

    assert "step 20" in hint.text
    assert hint.command.startswith("potluck stop")
    assert "All is well" not in [hint.title for hint in run(held_out=rising).hints]


@pytest.mark.parametrize(
    "losses", [[], [2.0], [3, 2, 3], [3, 2.5, 2.4, 2.3, 2.2], [2, 2.001, 2.002, 2.003], [2, 3, 3, 1.9]]
)
def test_noise_and_falling_losses_do_not_rise(losses):
    assert not is_rising(losses)


def test_a_finished_run_says_only_how_to_export_it():
    (hint,) = run(version=120).hints
    assert hint.kind == "finished"
    assert hint.command.startswith("potluck export peft")


def test_three_dropped_rounds_are_told_with_the_latest_reason():
    rounds = [
        {"version": 1, "status": "dropped", "members": 2, "tokens": 1, "seconds": 1, "bytes_sent": 1, "reason": reason}
        for reason in "abc"
    ]
    hint = run(rounds=rounds).hints[0]
    assert hint.kind == "dropped"
    assert hint.text.endswith(": c")
    assert "dropped" not in kinds(run(rounds=rounds[:2]))


def test_an_empty_run_can_be_shown():
    shown = run(peers=(), training=(), held_out=(), rounds=(), version=0)
    assert RunView.model_validate_json(shown.model_dump_json()) == shown
