"""A coordinator's page in a real browser, and its metrics, over real calls of light nodes."""

import asyncio
import re
import shutil
import stat
import subprocess
import threading
import urllib.request

import pytest
from light_nodes import LightNode, make_run
from prometheus_client.parser import text_string_to_metric_families
from serving_here import RUN, coordinator

from coordinator.web.owner import URL_FILE

OTHER = "cd" * 32
EVIL = '<img src=x onerror="document.title=1">\u202egnp'


class World:
    """A coordinator on a loop of its own thread, so that a browser can be driven from the test's."""

    def __init__(self, folder):
        self.folder, self.said = folder / "coordinator", []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._serving = coordinator(self.folder, dashboard="127.0.0.1:0", metrics="127.0.0.1:0", say=self.said.append)
        self.here = self.do(self._serving.__aenter__())
        run, other = make_run(), make_run(OTHER, name="the other run", num_stages=1)
        self.anna = LightNode(folder, self.here.address, "anna", run)
        self.evil = LightNode(folder, self.here.address, "evil", run)
        self.carl = LightNode(folder, self.here.address, "carl", other)

    def do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    @property
    def page(self):
        return (self.folder / URL_FILE).read_text().strip()

    def scrape(self):
        (line,) = [line for line in self.said if "/metrics" in line]
        with urllib.request.urlopen(line.split()[-1], timeout=10) as answer:
            return answer.read().decode()

    def close(self):
        for node in (self.anna, self.evil, self.carl):
            self.do(node.client.close())
        self.do(self._serving.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


async def two_runs(world):
    for node in (world.anna, world.evil, world.carl):
        await node.join()
    await world.evil.beat(name=EVIL, stop_stage=2, version=1)
    await world.anna.beat(version=3)
    await world.anna.beat(version=4, loss=2.4, held_out_loss=2.6)
    await world.anna.report(version=3)
    await world.anna.report(version=4, outcome="dropped", reason="somebody stalled")
    await world.carl.beat(stop_stage=1)


def until(page, found, what):
    for _ in range(200):
        if found():
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"waited for {what}; the page says: {page.locator('body').inner_text()}")


def test_the_page_shows_all_runs_and_who_left(world, look):
    world.do(two_runs(world))
    assert stat.S_IMODE((world.folder / URL_FILE).stat().st_mode) == 0o600

    page = look(world.page)
    peers, runs = page.locator("#peers"), page.locator("#runs button")
    assert runs.all_inner_texts() == ["demo", "the other run"]
    assert "2 here · 10 layers in 4 stages" in page.locator("#peers-note").inner_text()
    assert EVIL[:-4] in peers.inner_text(), "a name is text"
    assert "slow" in peers.inner_text()
    assert page.title() == "Potluck"
    assert "somebody stalled" in page.locator("#rounds").inner_text()
    assert "to 2.450 at step 4" in page.locator("#chart").get_attribute("aria-label")
    command = page.locator("#hints code").first.inner_text()
    assert command == f"potluck join /ip4/10.0.0.1/tcp/4040/p2p/QmA --coordinator '{world.here.address}'"

    runs.nth(1).press("Enter")
    until(page, lambda: page.locator("#name").inner_text() == "the other run", "the other run")
    assert "carl" in peers.inner_text()

    runs.nth(0).press("Enter")
    world.do(world.evil.leave())
    until(page, lambda: "1 left" in page.locator("#peers-note").inner_text(), "somebody to be gone")


def test_without_runs_the_page_says_how_to_found_one(world, look):
    page = look(world.page, awaited="#line[data-state=live]")

    until(page, lambda: page.locator("#name").inner_text() == "No run yet", "the page")
    assert "potluck start RECIPE --coordinator" in page.locator("#about").inner_text()


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_metrics_count_what_happened(world):
    world.do(two_runs(world))
    text = world.scrape()
    found = families(text)

    def value(name, **labels):
        (sample,) = [s for f in found.values() for s in f.samples if s.name == name and s.labels == labels]
        return sample.value

    assert value("potluck_coordinator_runs", state="training") == 2
    assert value("potluck_coordinator_members") == 3
    assert value("potluck_coordinator_tokens_per_second") == 300
    assert value("potluck_coordinator_calls_total", method="Heartbeat") == 4
    assert value("potluck_coordinator_rounds_total", outcome="dropped") == 1
    assert value("potluck_coordinator_refused_calls_total", reason="token") == 0
    assert {f.type for name, f in found.items() if name.startswith("potluck")} == {"gauge", "counter"}
    for secret in (RUN[:12], "anna", "evil", "10.0.0.1"):
        assert secret not in text


def test_promtool_has_nothing_to_say(world):
    if shutil.which("promtool") is None:
        pytest.skip("promtool (Debian package prometheus) is not installed")
    text = world.scrape()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert re.search(r"^potluck_coordinator_watchers 0\.0$", text, re.MULTILINE)
