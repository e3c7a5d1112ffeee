"""What real nodes send in a cut run on marked rows, as text and as tokens: nothing of them."""

import json
import socket
import urllib.request

import pytest
from leaks.marks import Leaks, marked_rows
from serving_here import Killable
from transformers import AutoTokenizer

from coordinator.web.owner import URL_FILE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
ROWS = marked_rows(5, 60)


@pytest.fixture(scope="module")
def leaks(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return Leaks(ROWS, [tokenizer(row)["input_ids"] for row in ROWS])


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "marked.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    return path


@pytest.fixture
def run(random_model, recipe, rows, start, tmp_path):
    """Start an owner of marked rows and a lender of the second stage; return both, and what the owner sends."""

    def run(*options, name="anna", also=()):
        path = recipe(random_model(4), extra="  stages: 2\n")
        sent = tmp_path / "sent.bin"
        arguments = ("start", path, "--data", rows, "--stages", "0", "--name", name, *also)
        owner = start(tmp_path / "a", *arguments, program=("leaks.recorder", sent, *options))
        lender = start(tmp_path / "b", "join", owner.address, "--lend", "--stages", "1")
        return owner, lender, sent

    return run


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def coordinator(tmp_path):
    server = Killable(tmp_path / "coordinator", free_port()).start()
    yield server
    server.kill()


def test_nothing_of_the_rows_leaves_the_machine(run, leaks, coordinator):
    metrics = f"127.0.0.1:{free_port()}"
    also = ("--dashboard", "127.0.0.1:0", "--metrics", metrics, "--coordinator", coordinator.address)
    owner, _, sent = run(also=also)
    owner.wait_for(lambda n: len(n.shared_rounds()) >= 3, "three rounds")
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    page = (owner.home / URL_FILE).read_text().strip()
    urls = (page, page.split("?")[0] + "snapshot", f"http://{metrics}/metrics")
    shown = b"".join(browser.open(url, timeout=30).read() for url in urls)
    status = json.dumps(owner.status())
    assert owner.stop() == 0

    data = sent.read_bytes()
    assert b"anna" in data, "the announcement was recorded"
    hidden_bytes = 3 * 192 * 64  # of the rounds, an eight-bit number each
    assert len(data) > hidden_bytes, "and the hidden states were"
    for method in ("Join", "Heartbeat", "WatchRun", "Leave"):
        assert f"coordinator:{method}".encode() in data, "what the coordinator was told was recorded"
    assert b"potluck_training_loss" in shown
    assert b"held_out" in shown, "and the page has shown something"
    assert leaks.in_bytes(shown) == []
    assert leaks.in_bytes(data) == []
    for log in (json.dumps(owner.events), "".join(owner.errors), status):
        assert leaks.in_bytes(log.encode()) == []
    kept = [path for home in (owner.home, coordinator.folder) for path in home.rglob("*") if path.is_file()]
    assert len({path.name for path in kept} & {"coordinator.sqlite", "identity.key"}) == 2
    for path in kept:
        assert leaks.in_bytes(path.read_bytes()) == [], f"{path} goes to nobody, and has no reason to hold rows either"


def test_a_row_in_an_announcement_would_be_found(run, leaks, coordinator):
    owner, _, sent = run(name=ROWS[0][:20], also=("--coordinator", coordinator.address))
    heartbeat = b"coordinator:Heartbeat"

    def told():
        """Each heartbeat and what was sent after it, but the first, which is what went before."""
        return sent.read_bytes().split(heartbeat)

    owner.wait_for(lambda n: any(leaks.in_bytes(part[:1000]) for part in told()[1:]), "a row told to the coordinator")
    owner.wait_for(lambda n: any(leaks.in_bytes(part[2000:]) for part in told()), "a row told to peers")


def test_tokens_in_a_request_to_a_stage_would_be_found(run, leaks):
    owner, _, sent = run("--send-tokens")
    owner.wait_for(lambda n: leaks.in_bytes(sent.read_bytes()), "tokens in what was sent")
