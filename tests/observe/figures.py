"""A node's events and status, as a real board makes them, for what shows them."""

import time
from pathlib import Path

from node.board import Board
from node.core.events import (
    AdapterSynced,
    CheckpointSaved,
    Evaluated,
    Fault,
    MicrobatchDone,
    MicrobatchRetried,
    PeerLost,
    PeerSeen,
    RoundFinished,
    StagesFound,
    StagesMissing,
    Stepped,
    WorkLost,
)
from node.core.types import Peer, PeerState, Progress, RoundResult, RoundStatus, Shard, StagePlan, SwarmView

HOSTILE = 'evil"} 1\nfake_metric 7\n# HELP \x1b[31m'


def a_round(status, *, seconds=1.5, bytes_sent=1000):
    return RoundFinished(RoundResult(0, status, ("me",), 600, seconds, bytes_sent))


ALL_EVENTS = (
    MicrobatchDone(1, 2.5, 100, 80, 0.4),
    MicrobatchDone(2, 2.4, 120, 90, 0.5),
    MicrobatchRetried(2, HOSTILE),
    a_round(RoundStatus.COMMITTED),
    a_round(RoundStatus.DROPPED, seconds=9.0, bytes_sent=10),
    a_round(RoundStatus.ALONE, seconds=0.0, bytes_sent=0),
    Stepped(1, 2e-4, 0.7, "ab", 0.25),
    Evaluated(1, 2.2, 500),
    CheckpointSaved(1, 0.3, 4096),
    AdapterSynced("other", 1, 2048, HOSTILE),
    WorkLost(33),
    PeerSeen("other", HOSTILE),
    PeerLost("other", HOSTILE),
    StagesMissing(HOSTILE, ""),
    StagesFound(),
    Fault(HOSTILE),
)


def a_peer(name, shard, state=PeerState.TRAINING, loss=2.0):
    return Peer(
        peer_id=name,
        name=HOSTILE,
        addresses=(),
        shard=shard,
        state=state,
        loss=loss,
        tokens_given=5,
        progress=Progress(3, "00", 900, 0, 50.0, time.time()),
        expires_at_s=time.time() + 20,
    )


class Node:
    """What stands behind a node's status, without its network."""

    def __init__(self):
        self.board = Board(name="mine", home=Path("home"))
        self.board.tokens_given = 77
        self.view = SwarmView(
            "me",
            (
                a_peer("me", Shard(0, 2), loss=1.5),
                a_peer("b", Shard(0, 4)),
                a_peer("c", Shard(1, 3), PeerState.SYNCING),
            ),
        )

    def status(self):
        status = self.board.status(
            state="training",
            view=self.view,
            mine=self.view.peers[0].progress,
            recipe=None,
            plan=StagePlan.even(8, 4),
            fingerprint="f" * 64,
            addresses=(),
            tokens_seen=1,
            towards_next=25,
            hidden_bytes=(11, 12),
        )
        status.max_steps, status.target_batch_tokens = 40, 100
        return status
