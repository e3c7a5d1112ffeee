"""The base model from peer to peer: from several at once, resumable, and never a byte that the founder did not sign."""

import asyncio
import dataclasses
import hashlib
import json
import shutil
from contextlib import AsyncExitStack

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from node import weights as weights_module
from node.core.errors import NoPeerReachable, ProtocolViolation
from node.core.types import LayerRange
from node.model.facts import manifest_of
from node.model.families import read_config
from node.model.shard import load_shard
from node.model.source import maths_of, model_digest
from node.model.spec import LoadSpec, LoraSpec
from node.model.store import FetchedFolder, ModelStore
from node.network.processes import start_p2p
from node.network.weights import WeightClient, WeightServer
from node.trust.identity import Identity
from node.trust.manifest import open_manifest
from node.trust.seal import ModelIdentity
from node.weights import BaseWeights, ensure_weights, fetch_manifest, fetch_small_files, serving_weights

pytestmark = pytest.mark.swarm
RUN = "ab" * 32
WHOLE = LoadSpec(LoraSpec(4, 8.0), compute="float32", quantization="none")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A random model of eight layers, in three files with an index, with a small file beside them."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="4MB")
    assert len(list(folder.glob("*.safetensors"))) >= 3
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 256}))
    return folder


@pytest.fixture
def identity_of(model, tmp_path):
    manifest = manifest_of(model, cache=tmp_path / "founder")
    maths = maths_of(read_config(model))
    return ModelIdentity(digest=manifest.model_digest(maths), config=maths, manifest=manifest.digest)


@pytest.fixture
async def nodes(tmp_path):
    """Start connected network daemons."""
    async with AsyncExitStack() as stack:

        async def start(count):
            running = []
            for number in range(count):
                home = tmp_path / f"node-{number}"
                identity = Identity.load_or_create(home / "identity.key")
                node = await start_p2p(home, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
                stack.push_async_callback(node.close)
                running.append(node)
            for node in running[1:]:
                await running[0].connect((await node.addresses())[0])
            return running

        yield start


class Altered(ModelStore):
    """Gives the right sizes and wrong bytes."""

    def tensor(self, name):
        extent = super().tensor(name)
        return dataclasses.replace(extent, start=extent.start - 1, stop=extent.stop - 1) if extent else None


class Breaking(ModelStore):
    """Is cut off in the middle of every tensor but the smallest."""

    def tensor(self, name):
        extent = super().tensor(name)
        if extent is None or extent.stop - extent.start < 100_000:
            return extent
        short = extent.path.parent.parent / f"short-{extent.stop}.bin"
        short.write_bytes(extent.path.read_bytes()[: extent.start + (extent.stop - extent.start) // 2])
        return dataclasses.replace(extent, path=short)


@pytest.fixture
def small_blocks(monkeypatch):
    """Let tensors of a tiny model travel in many blocks, as large ones do."""
    monkeypatch.setattr("node.network.weights.BLOCK_BYTES", 64 << 10)


async def serve(running, source):
    server = WeightServer(running.p2p, fingerprint=RUN, source=source)
    await server.open()
    return server


def base_at(folder, manifest, identity, cache, *, is_whole=False):
    return BaseWeights(
        folder=folder,
        is_whole=is_whole,
        model=identity,
        manifest=manifest,
        fingerprint=RUN,
        cache=cache,
        hub_name="/nowhere",
        revision=None,
    )


async def join(joiner, peers, identity, cache):
    """Do what a joiner with an empty model folder does, up to its weights."""
    manifest = await fetch_manifest(joiner, peers, RUN, identity)
    base = base_at(cache / "fetched" / identity.digest, manifest, identity, cache)
    await fetch_small_files(joiner, peers, RUN, FetchedFolder(base.folder, manifest))
    return base


def assert_same_model(folder, model):
    expected = {name: t for path in model.glob("*.safetensors") for name, t in load_file(path).items()}
    found = {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


async def test_a_joiner_with_nothing_gets_the_model_from_two_peers(nodes, model, identity_of, tmp_path):
    joiner, a, b = await nodes(3)
    manifest = manifest_of(model, cache=tmp_path / "founder")
    servers = [await serve(node, ModelStore(model, manifest)) for node in (a, b)]
    peers = [a.peer_id, b.peer_id]
    said = []

    base = await join(joiner, peers, identity_of, tmp_path / "cache")
    folder = await ensure_weights(base, joiner, lambda: peers, WHOLE, said.append)

    assert_same_model(folder, model)
    assert model_digest(folder, cache=tmp_path / "cache") == identity_of.digest
    assert (folder / "tokenizer_config.json").read_bytes() == (model / "tokenizer_config.json").read_bytes()
    assert all(server.bytes_sent > 0 for server in servers)
    assert sum(s.bytes_sent for s in servers) <= sum(f.stat().st_size for f in model.iterdir())
    assert any("MB from" in line for line in said)
    load_shard(folder, WHOLE)


async def test_a_shard_fetches_its_tensors_alone_and_is_handed_on(nodes, model, identity_of, tmp_path):
    joiner, founder, third = await nodes(3)
    await third.connect((await joiner.addresses())[0])
    manifest = manifest_of(model, cache=tmp_path / "founder")
    server = await serve(founder, ModelStore(model, manifest))
    spec = dataclasses.replace(WHOLE, layers=LayerRange(4, 8), ends=False)

    base = await join(joiner, [founder.peer_id], identity_of, tmp_path / "cache")
    folder = await ensure_weights(base, joiner, lambda: [founder.peer_id], spec, print)
    shard = load_shard(folder, spec)

    held = ModelStore(folder, manifest).held()
    assert held == {
        name for name in manifest.names if name.startswith(tuple(f"model.layers.{i}." for i in range(4, 8)))
    }
    assert shard.lora.keys() == {
        n for n in load_shard(model, WHOLE).lora if ".layers." in n and int(n.split(".layers.")[1].split(".")[0]) >= 4
    }

    await server.close()
    async with serving_weights(base, joiner):
        other = await join(third, [joiner.peer_id], identity_of, tmp_path / "third")
        again = await ensure_weights(other, third, lambda: [joiner.peer_id], spec, print)
    assert ModelStore(again, manifest).held() == held


async def test_altered_bytes_are_never_used_and_come_from_another(nodes, model, identity_of, tmp_path):
    joiner, liar, honest = await nodes(3)
    manifest = manifest_of(model, cache=tmp_path / "founder")
    bad = await serve(liar, Altered(model, manifest))
    await serve(honest, ModelStore(model, manifest))
    peers = [liar.peer_id, honest.peer_id]

    base = await join(joiner, peers, identity_of, tmp_path / "cache")
    small = bad.bytes_sent
    folder = await ensure_weights(base, joiner, lambda: peers, WHOLE, print)

    assert_same_model(folder, model)
    assert bad.bytes_sent > small, "the liar was asked"
    assert bad.bytes_sent - small <= max(f.num_bytes for f in manifest.tensors.values()), "and once only"


async def test_a_tensor_that_was_cut_off_is_continued_from_another(nodes, model, identity_of, tmp_path, small_blocks):
    joiner, breaking, whole = await nodes(3)
    manifest = manifest_of(model, cache=tmp_path / "founder")
    await serve(breaking, Breaking(shutil.copytree(model, tmp_path / "copies" / "model"), manifest))
    sent = await serve(whole, ModelStore(model, manifest))
    total = sum(facts.num_bytes for facts in manifest.tensors.values())

    base = await join(joiner, [breaking.peer_id], identity_of, tmp_path / "cache")
    peers = [breaking.peer_id]
    fetching = asyncio.create_task(ensure_weights(base, joiner, lambda: peers, WHOLE, print))
    while not any(part.stat().st_size > 64 << 10 for part in base.folder.glob("*.part")):
        await asyncio.sleep(0.01)
    peers.append(whole.peer_id)
    folder = await fetching

    assert_same_model(folder, model)
    assert 0 < sent.bytes_sent < total - (64 << 10), "what came before the cut was kept"


async def test_what_is_on_the_disk_is_not_fetched_again(nodes, model, identity_of, tmp_path):
    joiner, founder = await nodes(2)
    manifest = manifest_of(model, cache=tmp_path / "founder")
    server = await serve(founder, ModelStore(model, manifest))
    peers = [founder.peer_id]
    base = await join(joiner, peers, identity_of, tmp_path / "cache")
    await ensure_weights(base, joiner, lambda: peers, WHOLE, print)
    first = server.bytes_sent
    into = FetchedFolder(base.folder, manifest)
    name = "model.embed_tokens.weight"
    size, extent = manifest.tensors[name].num_bytes, into.tensor(name)
    part = extent.path.with_name(extent.path.name + ".part")
    part.write_bytes(extent.path.read_bytes()[: -size // 4])
    extent.path.unlink()

    folder = await ensure_weights(base, joiner, lambda: peers, WHOLE, print)

    assert_same_model(folder, model)
    assert server.bytes_sent - first == -(-size // 4), "only the missing quarter of one tensor came"


async def test_a_damaged_beginning_is_fetched_anew(nodes, model, identity_of, tmp_path):
    joiner, founder = await nodes(2)
    manifest = manifest_of(model, cache=tmp_path / "founder")
    await serve(founder, ModelStore(model, manifest))
    peers = [founder.peer_id]
    base = await join(joiner, peers, identity_of, tmp_path / "cache")
    into = FetchedFolder(base.folder, manifest)
    part = into.begin("lm_head.weight")
    part.append(bytes(1000))
    part.close()

    folder = await ensure_weights(base, joiner, lambda: peers, WHOLE, print)

    assert_same_model(folder, model)


async def test_a_peer_that_dies_in_the_middle_is_replaced(nodes, model, identity_of, tmp_path, small_blocks):
    joiner, dying, other = await nodes(3)
    manifest = manifest_of(model, cache=tmp_path / "founder")
    first = await serve(dying, ModelStore(model, manifest))
    await serve(other, ModelStore(model, manifest))
    peers = [dying.peer_id, other.peer_id]
    base = await join(joiner, peers, identity_of, tmp_path / "cache")

    small = first.bytes_sent
    fetching = asyncio.create_task(ensure_weights(base, joiner, lambda: peers, WHOLE, print))
    while first.bytes_sent == small:
        await asyncio.sleep(0)
    dying._child.kill()
    folder = await fetching

    assert_same_model(folder, model)


async def test_an_incomplete_folder_of_ones_own_is_completed(nodes, model, identity_of, tmp_path):
    joiner, founder = await nodes(2)
    manifest = manifest_of(model, cache=tmp_path / "founder")
    server = await serve(founder, ModelStore(model, manifest))
    mine = shutil.copytree(model, tmp_path / "mine")
    gone = min(mine.glob("*.safetensors"))
    lost = load_file(gone)
    gone.unlink()
    damaged = min(mine.glob("*.safetensors"))
    tensors = load_file(damaged)
    name = min(tensors)
    tensors[name] = tensors[name] + 1
    save_file(tensors, damaged)

    base = base_at(mine, manifest, identity_of, tmp_path / "cache")
    folder = await ensure_weights(base, joiner, lambda: [founder.peer_id], WHOLE, print)

    assert_same_model(folder, model)
    assert server.bytes_sent == sum(manifest.tensors[n].num_bytes for n in [*lost, name])


async def test_whoever_has_nothing_to_ask_is_told_what_to_do(nodes, model, identity_of, tmp_path, monkeypatch):
    joiner, founder = await nodes(2)
    manifest = manifest_of(model, cache=tmp_path / "founder")
    server = await serve(founder, ModelStore(model, manifest))
    base = await join(joiner, [founder.peer_id], identity_of, tmp_path / "cache")
    await server.close()
    monkeypatch.setattr(weights_module, "PATIENCE_S", 0.5)

    with pytest.raises(NoPeerReachable, match="missing tensors") as error:
        await ensure_weights(base, joiner, lambda: [founder.peer_id], WHOLE, print)

    assert "--base-model" in error.value.hint


async def test_another_manifest_than_the_founders_is_refused(nodes, model, identity_of, tmp_path):
    joiner, liar = await nodes(2)
    manifest = manifest_of(model, cache=tmp_path / "founder")
    names = dict(manifest.tensors)
    names["lm_head.weight"] = names["lm_head.weight"].model_copy(update={"digest": "0" * 64})
    await serve(liar, ModelStore(model, manifest.model_copy(update={"tensors": names})))

    with pytest.raises(NoPeerReachable, match="not the founder's"):
        await fetch_manifest(joiner, [liar.peer_id], RUN, identity_of)


async def test_only_the_runs_own_files_are_handed_on(nodes, model, identity_of, tmp_path):
    joiner, founder = await nodes(2)
    manifest = manifest_of(model, cache=tmp_path / "founder")
    (model.parent / "secret.json").write_text("{}")
    await serve(founder, ModelStore(model, manifest))
    client = WeightClient(joiner.p2p, fingerprint=RUN)

    for name in ("../secret.json", "/etc/hostname", "model.safetensors.index.json", ""):
        with pytest.raises(Exception, match="does not have"):
            await client.file(founder.peer_id, name, 2)
    with pytest.raises(ProtocolViolation, match="which has 2"):
        await client.file(founder.peer_id, "config.json", 2)


def test_a_manifest_names_no_file_outside_its_folder(model, identity_of, tmp_path):
    manifest = manifest_of(model, cache=tmp_path / "founder")
    facts = manifest.files["config.json"]
    data = manifest.model_copy(update={"files": {"../config.json": facts}}).to_bytes()
    signed = identity_of.model_copy(update={"manifest": hashlib.sha256(data).hexdigest()})

    with pytest.raises(ProtocolViolation, match="no model needs"):
        open_manifest(data, signed, sender="x")
