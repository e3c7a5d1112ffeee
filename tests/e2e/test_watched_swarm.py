"""Two machines find each other by multicast DNS, train, lose their coordinator and get it back; somebody watches."""

import re

import pytest
from browser import FLAGS, chromium_path
from faults.lan import Lan
from faults.rounds_network import can_make_namespaces
from serving_here import Killable

from coordinator.web.owner import URL_FILE

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root, for network namespaces"),
]
ANNA, BERT, COORDINATOR = range(3)
PORT = 7300


@pytest.fixture(scope="module")
def lan():
    with Lan(3) as lan:
        yield lan


@pytest.fixture(scope="module")
def chromium(lan, tmp_path_factory):
    """The browser of the person at anna's machine: in that machine's network, as the page listens there alone."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    inside = tmp_path_factory.mktemp("browser") / "chromium"
    inside.write_text(f'#!/bin/sh\nexec {" ".join(lan.inside(ANNA))} {path} "$@"\n')
    inside.chmod(0o755)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=inside, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def server(lan, tmp_path):
    server = Killable(tmp_path / "coordinator", PORT, ip=lan.address(COORDINATOR), inside=lan.inside(COORDINATOR))
    yield server.start()
    server.kill()


class Page:
    """What a person sees on the page."""

    def __init__(self, page, folder):
        self._page, self._folder = page, folder

    @property
    def step(self):
        """The last step that the training curve spans, as the page tells those who cannot see it."""
        label = self._page.locator("#chart").get_attribute("aria-label")
        told = re.search(r"Training loss: .* to \S+ at step (\d+)", label)
        return int(told[1]) if told else 0

    def text(self, where):
        return self._page.locator(where).inner_text()

    def until(self, found, what):
        for _ in range(1200):
            if found():
                return
            self._page.wait_for_timeout(50)
        raise AssertionError(f"waited a minute for {what}; the page says: {self._page.locator('body').inner_text()}")

    def picture(self, name):
        self._page.screenshot(path=self._folder / f"{name}.png", full_page=True)


def test_a_watched_swarm_trains_on_while_its_coordinator_is_away(
    lan, random_model, tmp_path, recipe, data, start, look, server
):
    helped = ("--coordinator", server.address)
    anna = start(
        tmp_path / "a",
        *("start", recipe(random_model(2), target=256), "--data", data("anna"), "--name", "anna", *helped),
        *("--dashboard", "127.0.0.1:0"),
        ip="0.0.0.0",
        inside=lan.inside(ANNA),
    )
    anna.wait_for(lambda n: n.of("CoordinatorFound"), "the coordinator")
    page = Page(look((tmp_path / "a" / URL_FILE).read_text().strip()), tmp_path)
    bert = start(
        tmp_path / "b",
        *("join", "--yes", "--data", data("bert"), "--name", "bert", *helped),
        ip="0.0.0.0",
        inside=lan.inside(BERT),
    )
    bert.wait_for(lambda n: n.of("CoordinatorFound"), "the coordinator")
    page.until(lambda: "bert" in page.text("#peers") and "2 here" in page.text("#peers-note"), "the second peer")
    page.until(lambda: "coordinator here" in page.text("#about"), "the coordinator")
    for node in (anna, bert):
        node.wait_for(lambda n: len(n.shared_rounds()) >= 3, "three rounds of both")
    step = anna.of("Stepped")[-1]["version"]
    page.until(lambda: page.step >= step, "the steps of these rounds")
    page.picture("trains")

    server.kill()
    for node in (anna, bert):
        node.wait_for(lambda n: n.of("CoordinatorLost"), "the loss of the coordinator")
    page.until(lambda: "coordinator not there" in page.text("#about"), "its loss on the page")
    shared, step = len(anna.shared_rounds()), page.step
    page.until(lambda: page.step >= step + 4, "four steps without it")
    assert len(anna.shared_rounds()) >= shared + 3, "rounds of both go on"
    assert "2 here" in page.text("#peers-note")
    page.picture("alone")

    server.start()
    for node in (anna, bert):
        node.wait_for(lambda n: len(n.of("CoordinatorFound")) == 2, "the coordinator again")
    page.until(lambda: "coordinator here" in page.text("#about"), "its return on the page")
    step = page.step
    page.until(lambda: page.step >= step + 3, "three steps with it")
    page.picture("back")

    assert not [event for node in (anna, bert) for event in (*node.of("PeerLost"), *node.of("Fault"))]
    assert anna.stop() == bert.stop() == 0
    last = max(anna.hashes().keys() & bert.hashes().keys())
    assert anna.hashes()[last] == bert.hashes()[last]
