"""The same small material each time: a run, a peer, an adapter, a base model of two tensors. Nothing is random."""

import base64
import json
import time
from pathlib import Path

import torch
from faults.durable import swapped

from node.core.round_messages import (
    Answer,
    Ask,
    Call,
    Fail,
    Knowledge,
    Open,
    Reason,
    Refusal,
    Share,
    Span,
    SpanResult,
    Tell,
    Verdict,
    Vote,
)
from node.core.types import Peer, PeerId, PeerState, Progress, Shard, Standing
from node.host.home import Home, LocalRun
from node.network.round_words import result_text
from node.training.checkpoint import Checkpoint, CheckpointStore
from node.training.state import AdapterState, Layout, encode
from node.trust.identity import Identity, SignedBytes, verify
from node.trust.manifest import FileFacts, Manifest, TensorFacts
from node.trust.seal import ModelIdentity, RunSeal, seal_run

KEY = Path(__file__).parent / "golden" / "0.1" / "home" / "identity.key"
"""The key pair of all golden files: made for them, and used nowhere else."""
RUN = "cd" * 32
AT_S = 1_700_000_000.0
OTHER = PeerId("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")


def identity():
    return Identity.load_or_create(KEY)


# --- files ---------------------------------------------------------------------------------------------------------


def manifest():
    tensors = {
        name: TensorFacts(dtype="F32", shape=(2, 2), num_bytes=16, digest=f"{number:02x}" * 32)
        for number, name in enumerate(("model.embed_tokens.weight", "model.norm.weight"), 1)
    }
    return Manifest(tensors=tensors, files={"config.json": FileFacts(num_bytes=2, sha256="03" * 32)})


def seal():
    config = {"hidden_size": 2, "model_type": "llama", "rms_norm_eps": 1e-06}
    model = ModelIdentity(digest=manifest().model_digest(config), config=config, manifest=manifest().digest)
    return RunSeal(fingerprint=RUN, recipe='{"base_model":"tiny"}', model=model, founded_at_s=AT_S)


def layout():
    return Layout.of([("layers.0.q_proj.lora_A", (2, 3)), ("layers.0.q_proj.lora_B", (3, 2))])


def adapter():
    values = torch.arange(12, dtype=torch.float32)
    return AdapterState(7, 4096, values / 8, values / 64, values / 512)


def checkpoint():
    return Checkpoint(
        RUN,
        7,
        {0: encode(adapter(), layout())},
        cursor={"epoch": 1, "position": 20, "next_id": 33},
        counters={"tokens_seen": 8192, "committed_tokens": 4096},
        random={"data": "04" * 32, "lineage": "r.1 r.2", "base_hash": "0b0b"},
    )


def write_home(path):
    """Write a node's whole folder."""
    home = Home(path)
    home.acquire()
    try:
        home.identity_path.write_bytes(KEY.read_bytes())
        home.remember_port(4040)
        folder = home.create_run(RUN)
        folder.save_seal(seal_run(seal(), identity()))
        folder.save_manifest(manifest().to_bytes())
        folder.save_local(
            LocalRun(origin="05" * 32, data=("/data/mine.jsonl",), base_model="/models/tiny", tokens_given=9)
        )
        with swapped(time, "time", lambda: AT_S):
            folder.remember_peers([(OTHER, ("/ip4/192.168.1.20/tcp/4040/p2p/" + OTHER,))])
        CheckpointStore(folder.checkpoints).save(checkpoint())
    finally:
        home.release()


def without_signature(name, data):
    """Return a file's bytes without what is random in it; a signature must hold instead."""
    if not name.endswith("seal.json"):
        return data
    fields = json.loads(data.split(b"\n#blake2b")[0])
    signed = SignedBytes(*(base64.b64decode(fields[key]) for key in ("body", "public_key", "signature")))
    assert verify("run", signed) == identity().peer_id
    return signed.body + signed.public_key


# --- words ---------------------------------------------------------------------------------------------------------


def peer():
    progress = Progress(7, "0b0b", 4096, 512, 55.5, AT_S, ((2, "0a"), (3, "0c")))
    return Peer(
        identity().peer_id,
        "anna",
        ("/ip4/192.168.1.20/tcp/4040/p2p/" + identity().peer_id,),
        Shard(2, 4),
        PeerState.TRAINING,
        2.5,
        77,
        progress,
        AT_S + 20,
        session="5e",
        drives=True,
        stage_tokens_per_s=120.5,
        capacity_stages=3,
    )


def round_words():
    me = identity().peer_id
    standing = Standing(7, "0b0b", 4096, ((0, "0a"), (1, "0c")))
    results = (SpanResult(0, me, result_text("0d" * 32, 2.5)), SpanResult(1, OTHER, result_text("0e" * 32, 0.0)))
    share = Share(me, 30, 64, Shard(0, 2), "5e", (Span(0, 0, 6), Span(1, 6, 12)))
    return (
        Call("r.1", standing, "r.0", 12.5, "bf16/mean/2"),
        Answer("r.1", 30, 64, Shard(0, 2), "5e", ((0, "0a"), (1, "0c")), ((0, 12), (1, 12)), {OTHER: Shard(0, 1)},
               frozenset({(OTHER, "5f")})),
        Refusal("r.1", Reason.BEHIND, standing),
        Open("r.1", (share,)),
        Fail("r.1", OTHER, "it was too slow"),
        Vote("r.1", results),
        Verdict("r.1", committed=True, reason="", results=results, must_discard=False),
        Verdict("r.1", committed=False, reason="nobody voted", must_discard=True),
        Ask("r.1"),
        Tell("r.1", Knowledge.COMMITTED, results),
    )  # fmt: skip


def hidden():
    """A tensor [5, 70] of halves, small enough that every rotation of it is exact."""
    return ((torch.arange(350) * 37 % 33 - 16).float() / 2).view(5, 70)
