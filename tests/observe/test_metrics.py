"""What Prometheus reads from a node: the real page over a real socket, judged by Prometheus' own parser and linter."""

import asyncio
import contextlib
import http.client
import re
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from observe.figures import ALL_EVENTS, Node
from prometheus_client.parser import text_string_to_metric_families

from coordinator import scrape
from coordinator.scrape import from_other_threads, metrics_endpoint
from node.core.errors import ConfigError
from node.core.lifecycle import State
from node.core.types import PeerState
from node.observe.metrics import NodeMetrics, serving_metrics

NAME = re.compile(r"(potluck|process)_[a-z]+(_[a-z]+)*")
UNITS_THAT_ARE_NOT_BASE = ("milliseconds", "ms", "minutes", "kilobytes", "mib", "gib", "mb", "percent", "count")
MAX_VALUES_OF_A_LABEL = 12


@pytest.fixture
def page():
    """The page of a node to which everything has happened, and the metrics behind it."""
    node = Node()
    metrics = NodeMetrics(node.status, lambda: (3 << 30, 8 << 30))
    for event in ALL_EVENTS:
        node.board(event)
        metrics(event)

    async def read():
        async with metrics_endpoint(metrics.registry, "127.0.0.1:0") as url:
            return await asyncio.to_thread(fetch, url)

    return asyncio.run(read())


def fetch(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def families(page):
    return {family.name: family for family in text_string_to_metric_families(page)}


def value(page, sample, **labels):
    found = [s.value for f in families(page).values() for s in f.samples if s.name == sample and s.labels == labels]
    assert len(found) == 1, f"{sample}{labels}: {found}"
    return found[0]


def test_the_page_says_what_happened_and_how_things_stand(page):
    expected = {
        "potluck_tokens_trained_total": 220,
        "potluck_microbatch_duration_seconds_sum": 0.9,
        "potluck_microbatch_retries_total": 1,
        "potluck_round_tokens_total": 1800,
        "potluck_learning_rate": 2e-4,
        "potluck_epoch": 0.25,
        "potluck_checkpoint_step": 1,
        "potluck_checkpoint_size_bytes": 4096,
        "potluck_adapter_fetched_bytes_total": 2048,
        "potluck_lost_tokens_total": 33,
        "potluck_stages_missing": 0,
        "potluck_faults_total": 1,
        "potluck_step": 3,
        "potluck_max_steps": 40,
        "potluck_step_progress_ratio": 0.25,
        "potluck_training_loss": 1.5,
        "potluck_held_out_loss": 2.2,
        "potluck_tokens_committed_total": 77,
        "potluck_stages": 4,
        "potluck_stages_held": 2,
        "potluck_stage_replicas_lowest": 1,
    }
    assert {name: pytest.approx(value(page, name)) for name in expected} == expected
    assert value(page, "potluck_rounds_total", status="committed") == 1
    assert value(page, "potluck_rounds_total", status="dropped") == 1
    assert value(page, "potluck_round_duration_seconds_sum", status="dropped") == 9
    assert value(page, "potluck_sent_bytes_total", kind="rounds") == 1010
    assert value(page, "potluck_sent_bytes_total", kind="hidden_states") == 11
    assert value(page, "potluck_received_bytes_total", kind="hidden_states") == 12
    assert value(page, "potluck_device_memory_bytes", kind="used") == 3 << 30
    assert value(page, "potluck_peers", state="training") == 2
    assert value(page, "potluck_peers", state="syncing") == 1
    assert value(page, "potluck_run_info", run="f" * 12) == 1


def test_exactly_one_state_is_marked(page):
    marked = {s.labels["state"]: s.value for s in families(page)["potluck_state"].samples}

    assert set(marked) == {state.value for state in State}
    assert [state for state, mark in marked.items() if mark] == ["training"]


def test_names_units_and_help_follow_the_rules(page):
    for family in families(page).values():
        assert NAME.fullmatch(family.name), family.name
        assert not set(family.name.split("_")) & set(UNITS_THAT_ARE_NOT_BASE), family.name
        assert len(family.documentation) > 8, family.name
        if family.type == "counter":
            assert all(s.name.endswith("_total") for s in family.samples), family.name
        else:
            assert not family.name.endswith("_total"), family.name
        assert not any(s.name.endswith("_created") for s in family.samples), family.name


def test_promtool_finds_nothing_to_say(page):
    if shutil.which("promtool") is None:
        pytest.skip("promtool (Debian package prometheus) is not installed")

    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=30)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_labels_have_few_values_and_none_of_them_is_a_peers_word(page):
    assert "evil" not in page
    assert "fake_metric" not in page
    for family in families(page).values():
        for label in {name for s in family.samples for name in s.labels} - {"le"}:
            assert len({s.labels[label] for s in family.samples if label in s.labels}) <= MAX_VALUES_OF_A_LABEL


def test_series_are_there_before_their_first_event():
    metrics = NodeMetrics(Node().status, lambda: None)

    names = {s.name for f in metrics.registry.collect() for s in f.samples}

    assert {"potluck_tokens_trained_total", "potluck_rounds_total", "potluck_faults_total"} <= names
    assert "potluck_device_memory_bytes" not in names
    assert {s.labels["state"] for f in metrics.registry.collect() if f.name == "potluck_peers" for s in f.samples} == {
        state.value for state in PeerState
    }


async def test_status_is_read_on_the_event_loops_own_thread():
    node, threads = Node(), []

    def status():
        threads.append(threading.get_ident())
        return node.status()

    metrics = NodeMetrics(from_other_threads(status, asyncio.get_running_loop()), lambda: None)
    async with metrics_endpoint(metrics.registry, "127.0.0.1:0") as url:
        await asyncio.to_thread(fetch, url)

    assert set(threads) == {threading.get_ident()}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_busy_loop_is_answered_with_503(monkeypatch):
    monkeypatch.setattr(scrape, "_ANSWER_S", 0.05)
    loop = asyncio.new_event_loop()  # never runs, as one that hangs
    metrics = NodeMetrics(from_other_threads(Node().status, loop), lambda: None)

    async def read():
        async with metrics_endpoint(metrics.registry, "127.0.0.1:0") as url:
            with pytest.raises(urllib.error.HTTPError) as refused:
                await asyncio.to_thread(fetch, url)
            return refused.value.code

    assert asyncio.run(read()) == 503
    loop.close()


async def test_silent_callers_are_few_and_are_cut_off(monkeypatch):
    monkeypatch.setattr(scrape._Handler, "timeout", 0.3)
    metrics = NodeMetrics(Node().status, lambda: None)

    async with metrics_endpoint(metrics.registry, "127.0.0.1:0") as url, contextlib.AsyncExitStack() as open_ones:
        address = (urlsplit(url).hostname, urlsplit(url).port)
        before = threading.active_count()
        for _ in range(50):
            open_ones.enter_context(contextlib.closing(socket.create_connection(address)))
        await asyncio.sleep(0.1)
        assert threading.active_count() - before <= scrape._MAX_CALLERS
        await asyncio.sleep(0.5)

        assert "potluck_step" in await asyncio.to_thread(fetch, url)


async def test_a_taken_port_is_one_line_with_a_way_out():
    metrics = NodeMetrics(Node().status, lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"

        with pytest.raises(ConfigError, match=f"cannot listen on {where}") as refused:
            async with serving_metrics(metrics, where, print):
                pass

    assert "--metrics=127.0.0.1:4043" in refused.value.hint


async def test_after_the_end_nobody_listens():
    metrics = NodeMetrics(Node().status, lambda: None)
    async with metrics_endpoint(metrics.registry, "127.0.0.1:0") as url:
        pass

    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(urlsplit(url).netloc, timeout=5).connect()


def test_the_docs_list_every_metric_and_no_other(page):
    text = (Path(__file__).parent.parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(potluck_\w+)", text.partition("## Of a node")[2].partition("\n## ")[0]))
    exported = {
        f.name + {"counter": "_total"}.get(f.type, "") if not f.name.endswith("_total") else f.name
        for f in families(page).values()
        if f.name.startswith("potluck_")
    }

    assert listed == exported
