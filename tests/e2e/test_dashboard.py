"""The web page of a real swarm that trains, seen in a real browser."""

import re
import stat

import pytest

from coordinator.web.owner import URL_FILE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def steps_on(page):
    """Steps that the training curve spans, as the page tells those who cannot see it."""
    told = re.search(r"Training loss: .* to \S+ at step (\d+)", page.locator("#chart").get_attribute("aria-label"))
    return int(told[1]) if told else 0


def wait_until(page, found, what):
    for _ in range(1200):
        if found():
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"waited a minute for {what}")


def test_the_curve_of_a_real_swarm_grows_and_one_who_leaves_is_seen_to(
    random_model, tmp_path, recipe, data, start, look
):
    found = ("start", recipe(random_model(4)), "--data", data("anna"), "--name", "anna")
    founder = start(tmp_path / "a", *found, "--dashboard", "127.0.0.1:0")
    address = founder.address
    file = tmp_path / "a" / URL_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    page = look(file.read_text().strip())
    assert page.locator(".hint.alone code").inner_text() == f"potluck join {address}"

    other = start(tmp_path / "b", "join", address, "--data", data("bert"), "--name", "bert")
    other.wait_for(lambda n: n.shared_rounds(), "a shared round")
    wait_until(page, lambda: "bert" in page.locator("#peers").inner_text(), "the second peer")
    wait_until(page, lambda: steps_on(page) >= 3, "three steps")
    before = steps_on(page)
    wait_until(page, lambda: steps_on(page) >= before + 2, "more steps")
    assert page.locator("#rounds tbody tr").count() >= 3
    assert "2 here" in page.locator("#peers-note").inner_text()

    assert other.stop() == 0
    wait_until(page, lambda: "1 left" in page.locator("#peers-note").inner_text(), "the other to be shown as gone")
    assert founder.stop() == 0
    page.wait_for_selector("#line[data-state=lost]")
    assert steps_on(page) >= before, "what was last seen stays"
    assert not file.exists()
