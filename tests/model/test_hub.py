"""From the hub come only the files that are needed: a small hub on this machine answers as the real one does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tiny_models import FAMILIES, save_tiny
from transformers import AutoModelForCausalLM

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys
from pathlib import Path
from node.model.hub import download_model, download_small_files, download_tensors
what, *names = sys.argv[1:]
if what == "small":
    print(download_small_files("someone/tiny", None))
elif what == "whole":
    print(download_model("someone/tiny", None))
else:
    print(download_tensors("someone/tiny", None, names))
"""


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download uses."""

    def __init__(self, folder, asked, *arguments):
        self._folder = folder
        self._asked = asked
        super().__init__(*arguments)

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(has_body=False)

    def do_GET(self):
        self._answer(has_body=True)

    def _answer(self, *, has_body):
        path = self.path.split("?")[0]
        headers = {"X-Repo-Commit": COMMIT}
        if path.startswith("/api/models/someone/tiny"):
            files = [{"rfilename": file.name, "type": "file", "path": file.name} for file in self._folder.iterdir()]
            body = json.dumps({"id": "someone/tiny", "sha": COMMIT, "siblings": files})
            if "/tree/" in path:
                body = json.dumps([{**f, "size": 1, "oid": "0"} for f in files])
            body = body.encode()
        else:
            name = path.rpartition("/")[2]
            if not (self._folder / name).is_file():
                self.send_error(404)
                return
            body = (self._folder / name).read_bytes()
            headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
            if has_body:
                self._asked.append(name)
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path):
    """Serve a model in several files; yield its folder, what was downloaded, and how to download."""
    whole = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "tiny", **FAMILIES["llama"]))
    folder = tmp_path / "model"
    whole.save_pretrained(folder, max_shard_size="100KB")
    (folder / "consolidated.safetensors").write_bytes(b"the same weights once more")
    (folder / "README.md").write_text("read me")
    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def download(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            env={
                **os.environ,
                "HF_HUB_CACHE": str(tmp_path / "cache"),
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                **environment,
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    yield folder, asked, download
    server.shutdown()
    server.server_close()


def test_configuration_and_tokenizer_come_without_weights(hub):
    folder, asked, download = hub

    download("small")

    assert sorted(asked) == ["config.json", "generation_config.json", "model.safetensors.index.json"]


def test_only_files_that_hold_wanted_tensors_come(hub):
    folder, asked, download = hub
    files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    wanted = [name for name in files if name.startswith("model.layers.2.")]

    got = download("tensors", *wanted)

    expected = {files[name] for name in wanted}
    assert {name for name in asked if name.endswith(".safetensors")} == expected
    assert expected < set(files.values()), "the model has more files"
    del asked[:]
    assert download("tensors", *wanted) == got
    assert not asked, "what is cached is not asked for again"
    assert download("tensors", *wanted, HF_HUB_OFFLINE="1") == got


def test_a_whole_model_comes_without_what_its_index_does_not_name(hub):
    folder, asked, download = hub

    got = download("whole")

    files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert {name for name in asked if name.endswith(".safetensors")} == set(files.values())
    assert download("whole", HF_ENDPOINT="http://127.0.0.1:9") == got
