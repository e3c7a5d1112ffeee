"""What the golden files are: how the present code writes each of them, and what it makes of one.

golden/<version>/
  home/               a node's folder, with a checkpoint
  recipe.yaml         and what joiners get of it: recipe.json
  words/<name>.bin    what is said between peers, byte by byte
  schema.json         numbers and types of all fields of all protobuf messages; names under which nodes serve
  values.json         what was read from each when it was written, and what the rules of `maths.py` gave
"""

import asyncio
import contextlib
import dataclasses
import json
import tempfile
from enum import Enum
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor

from node.config.load import load_recipe
from node.config.recipe import Recipe
from node.core import versions
from node.core.errors import PeerError
from node.host.home import Home
from node.network import activations
from node.network.door import HELLO, STATE
from node.network.records import decode_peer, encode_peer
from node.network.round_words import from_wire, to_wire
from node.network.rounds import PeerLost, RoundTransport
from node.network.stages import StageTransport
from node.training.checkpoint import CheckpointStore
from node.training.state import decode
from node.trust.manifest import open_manifest
from node.v1 import control_pb2, pipeline_pb2, round_pb2, swarm_pb2, weights_pb2
from versions import material, streams
from versions.maths import maths

ROOT = Path(__file__).parent / "golden"
CODECS = [(codec, way) for codec in ("none", "bf16", "int8", "lowbit") for way in ("forward", "backward")]
_DIGEST = "ab" * 32


def plain(value):
    """Return a value as JSON has it, so that it can be kept and compared."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, Enum):
        return value.value
    return value.hex() if isinstance(value, (bytes, bytearray)) else value


# --- words ---------------------------------------------------------------------------------------------------------


def _messages():
    """The door's words, by name; each is written in one way alone."""
    body = material.seal().model_dump_json().encode()
    recipe = swarm_pb2.Signed(body=body, public_key=material.identity().public_key, signature=b"\x01" * 256)
    return {
        "hello": swarm_pb2.Hello(protocol=1, software="0.1.0", fingerprint=material.RUN, clock_s=material.AT_S),
        "welcome": swarm_pb2.Welcome(
            protocol=1, software="0.1.0", recipe=recipe, clock_s=material.AT_S, state="training"
        ),
        "turned-away": swarm_pb2.Welcome(protocol=1, software="0.1.0", clock_s=material.AT_S),
        "state-request": swarm_pb2.StateRequest(fingerprint=material.RUN, stage=2, protocol=1),
        "state-header": swarm_pb2.StateChunk(
            header=swarm_pb2.StateHeader(lineage=["r.1", "r.2"], version=7, base_hash="0b0b")
        ),
        "state-part": swarm_pb2.StateChunk(part=b"some bytes"),
        "state-end": swarm_pb2.StateChunk(end=swarm_pb2.StateEnd(num_bytes=10, sha256=b"\x02" * 32)),
        "state-try-later": swarm_pb2.StateChunk(try_later="I am syncing"),
        "receipt": round_pb2.RoundReceipt(is_known=True),
    }


def _record():
    return encode_peer(material.peer(), fingerprint=material.RUN, at_s=material.AT_S, identity=material.identity())


def words():
    """Return all that is said between peers, as the present code writes it, by name."""
    written = {f"door/{name}": message.SerializeToString() for name, message in _messages().items()}
    written["record"] = _record()
    for number, word in enumerate(material.round_words()):
        name = f"round/{number:02}-{type(word).__name__.lower()}"
        written[name] = to_wire(word, fingerprint=material.RUN).SerializeToString()
    for codec, way in CODECS:
        written[f"activations/{codec}-{way}"] = bytes(activations.encode(codec, way, material.hidden(), [2, 3]))
    for name, ask in streams.ASK.items():
        request, reply = asyncio.run(_both_sides(name, ask))
        written[f"streams/{name}-request"], written[f"streams/{name}-reply"] = request, reply
    return written


async def _both_sides(name, ask):
    """Return request and reply. The request is written before the reply is read, so that none is needed for it."""
    line = streams.Line()
    with contextlib.suppress(PeerError, PeerLost):
        await ask(line)
    with tempfile.TemporaryDirectory() as folder:
        reply, _ = await streams.serve(name, line.writer.data, Path(folder))
    return line.writer.data, reply


def read_word(name, data):
    """Return what the present code makes of a word."""
    kind, _, rest = name.partition("/")
    match kind:
        case "door":
            message = type(_messages()[rest])
            return streams.fields(message.FromString(data))
        case "record":
            peer = decode_peer(data, fingerprint=material.RUN, expires_at_s=1.0)
            return plain(peer) if peer is not None else None
        case "round":
            return plain(from_wire(round_pb2.RoundMessage.FromString(data)))
        case "activations":
            codec, way = rest.split("-")
            tensor = activations.decode(codec, way, data, [2, 3], 70, material.hidden().dtype)
            return [round(value, 4) for value in tensor[:, ::10].flatten().tolist()]
        case "streams":
            return asyncio.run(_read_stream(rest, data))
    raise AssertionError(name)


async def _read_stream(name, data):
    kind, _, side = name.rpartition("-")
    if side == "reply":
        return await streams.ASK[kind](streams.Line(data))
    with tempfile.TemporaryDirectory() as folder:
        return plain((await streams.serve(kind, data, Path(folder)))[1])


def comparable(name, data):
    """Return a word's bytes without what is random in them: a signature."""
    return swarm_pb2.Signed.FromString(data).body if name == "record" else data


# --- files ---------------------------------------------------------------------------------------------------------


def read_home(path):
    """Return what the present code makes of a node's folder."""
    home = Home(path)
    folder = home.current_run()
    run = folder.load_seal()
    manifest = open_manifest((folder.path / "manifest.json").read_bytes(), run.seal.model, sender="a file")
    checkpoint = CheckpointStore(folder.checkpoints, read_only=True).load_latest(material.RUN)
    adapter = decode(checkpoint.adapters[0], material.layout())
    return {
        "port": home.remembered_port(),
        "seal": run.seal.model_dump(mode="json"),
        "founder": run.founder,
        "local": folder.load_local().model_dump(mode="json"),
        "peers": [peer.model_dump(mode="json") for peer in folder.known_peers()],
        "manifest": manifest.model_dump(mode="json"),
        "checkpoint": plain({**vars(checkpoint), "adapters": sorted(checkpoint.adapters)}),
        "adapter": [adapter.version, adapter.committed_tokens, *(part.tolist() for part in (adapter.values, adapter.exp_avg, adapter.exp_avg_sq))],
    }  # fmt: skip


def read_recipe(path):
    """Return what the present code makes of a recipe, and of what its founder published of it."""
    loaded = load_recipe(path / "recipe.yaml").recipe
    shared = Recipe.from_shared_json((path / "recipe.json").read_bytes())
    return {
        "recipe": loaded.model_dump(mode="json"),
        "fingerprint": loaded.fingerprint(_DIGEST),
        "shared_fingerprint": shared.fingerprint(_DIGEST),
    }


# --- comparing -----------------------------------------------------------------------------------------------------


def misread(folder):
    """Return what the present code reads differently than the version that wrote it: nothing, it is hoped.

    Of another protocol only the door's words are read at all.
    """
    known = json.loads((folder / "values.json").read_text())
    speaks_ours = versions.understands(json.loads((folder / "schema.json").read_text())["protocol"])
    heard = {name: value for name, value in known["words"].items() if speaks_ours or name.startswith("door/")}
    found = {f"words/{name}": read_word(name, _word(folder, name)) == value for name, value in heard.items()}
    if speaks_ours:
        found |= {f"maths/{name}": value == known["maths"][name] for name, value in maths().items()}
    found["home"] = read_home(folder / "home") == known["home"]
    found |= {name: value == known[name] for name, value in read_recipe(folder).items()}
    return sorted(name for name, is_equal in found.items() if not is_equal)


def written_differently(folder, scratch):
    """Return what the present code writes differently: files, words, fields."""
    written = words()
    stored = {
        path.relative_to(folder / "words").with_suffix("").as_posix() for path in (folder / "words").rglob("*.bin")
    }
    found = [f"words/{name}" for name in stored ^ written.keys()]
    found += [
        f"words/{name}"
        for name in stored & written.keys()
        if comparable(name, written[name]) != comparable(name, _word(folder, name))
    ]
    material.write_home(scratch / "home")
    files = {path.relative_to(folder).as_posix() for path in (folder / "home").rglob("*") if path.is_file()}
    ours = {path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file()} - {"home/lock"}
    found += sorted(files ^ ours)
    for name in files & ours:
        both = [material.without_signature(name, (root / name).read_bytes()) for root in (folder, scratch)]
        if both[0] != both[1]:
            found.append(name)
    if load_recipe(folder / "recipe.yaml").recipe.shared_json() != (folder / "recipe.json").read_text():
        found.append("recipe.json")
    return sorted([*found, *_changed_fields(json.loads((folder / "schema.json").read_text()))])


def _changed_fields(known):
    """Return fields and names of before that are gone or changed; a new field is none."""
    present = json.loads(json.dumps(schema()))
    changed = [name for name in ("protocol", "served") if known[name] != present[name]]
    for message, fields in known["messages"].items():
        ours = present["messages"].get(message, {})
        changed += [f"{message}.{name}" for name, what in fields.items() if ours.get(name) != what]
    return changed


def _word(folder, name):
    return (folder / "words" / f"{name}.bin").read_bytes()


# --- schema --------------------------------------------------------------------------------------------------------


def schema():
    """Return numbers and types of all fields of all messages, and the names under which nodes serve."""
    found = {}
    for module in (swarm_pb2, round_pb2, pipeline_pb2, weights_pb2, control_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            found[message.full_name] = {field.name: [field.number, _type_of(field)] for field in message.fields}
        for enum in module.DESCRIPTOR.enum_types_by_name.values():
            found[enum.full_name] = {value.name: [value.number, "value"] for value in enum.values}
    rounds = RoundTransport(None, fingerprint=material.RUN)
    served = {
        "door": [HELLO, STATE],
        "rounds": [RoundTransport._get_handle_name(rounds._space, "rpc_word"), rounds._bulk_name],
        "stages": [StageTransport(None, fingerprint=material.RUN)._name],
    }
    return {"protocol": versions.PROTOCOL, "messages": found, "served": served}


def _type_of(field):
    names = {value: name for name, value in vars(FieldDescriptor).items() if name.startswith("TYPE_")}
    repeated = "repeated " if field.is_repeated else ""
    return repeated + names[field.type] + (f" {field.message_type.full_name}" if field.message_type else "")
