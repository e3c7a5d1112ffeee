"""The page in a real browser, over snapshots that the test makes."""

import time

import pytest
from pages import AXE, JOIN, Shown, peer, run, served, until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def shown():
    return Shown()


@pytest.fixture(scope="module")
def url(shown):
    with served(shown) as address:
        yield address


@pytest.fixture(autouse=True)
def _as_it_was(shown):
    yield
    shown.runs = (run(),)


def serious(page):
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run().then((result) => result.violations)")
    return [(v["id"], [node["html"] for node in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")]


def painted(page):
    """How many pixels of the chart are drawn in the training curve's colour."""
    return page.evaluate(
        """() => {
          const canvas = document.querySelector("#chart canvas");
          const name = getComputedStyle(document.documentElement).getPropertyValue("--training").trim();
          const colour = [1, 3, 5].map((at) => parseInt(name.slice(at, at + 2), 16));
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let at = 0; at < data.length; at += 4)
            if (data[at + 3] > 200 && colour.every((value, index) => Math.abs(value - data[at + index]) < 12)) count += 1;
          return count;
        }"""
    )


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_the_page_has_no_serious_fault_for_those_who_cannot_see_or_point(url, look, width, scheme):
    page = look(url, width=width, height=844, color_scheme=scheme)
    page.locator("summary").click()

    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out of a phone"


def test_the_curve_is_drawn_and_moves_with_new_snapshots(url, shown, look):
    shown.runs = (run(training=(), held_out=(), version=0),)
    page = look(url)
    assert painted(page) == 0
    assert page.locator("#chart").get_attribute("aria-label") == "No loss yet"

    shown.runs = (run(),)
    until(page, "document.getElementById('chart').getAttribute('aria-label').includes('step 40')")

    assert painted(page) > 200
    assert "Held-out loss: from 2.900 at step 0" in page.locator("#chart").get_attribute("aria-label")


def test_peers_stand_beside_the_stages_that_they_hold(url, look):
    page = look(url)
    rows = page.locator("#peers tbody tr")

    texts = [" ".join(row.split()) for row in rows.all_inner_texts()]

    assert "anna this node training" in texts[0]
    assert "0–15" in texts[0]
    assert "slow" in texts[1]
    assert "16–31" in texts[1]
    assert "trains through others" in texts[2]
    assert "left" in texts[3]
    boxes = [rows.nth(index).locator(".block").bounding_box() for index in (0, 1)]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] + 1, "the second holder's stages come after the first's"


def test_a_stage_without_a_holder_is_seen_in_the_grid_and_in_the_advice(url, shown, look):
    shown.runs = (run(peers=[peer(1, is_me=True, stop_stage=3, stop_layer=24)]),)
    page = look(url)

    assert page.locator(".holders.missing").inner_text() == "nobody"
    assert "Stage 3 has no holder" in page.locator("#hints").inner_text()


def test_names_of_others_stay_text(url, shown, look):
    evil = "<script>document.title='evil'</script><img src=x onerror=alert(1)>"
    shown.runs = (
        run(
            name=evil,
            peers=[
                peer(1, name=evil),
                peer(2, name="\u202e\u2066gnihton"),
                peer(3, name="界" * 64),
                peer(4, state=evil),
            ],
            rounds=[
                {"version": 1, "status": evil, "members": 1, "tokens": 1, "seconds": 1, "bytes_sent": 1, "reason": evil}
            ],
        ),
    )
    page = look(url, width=390, height=844)

    names = page.locator("#peers tbody bdi").all_inner_texts()

    assert names[0] == evil[:64]
    assert names[1] == "gnihton"
    assert page.locator("main script, main img[src=x]").count() == 0
    assert page.title() == "Potluck"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#peers tbody bdi").nth(2).bounding_box()["width"] < 300


def test_the_policy_stops_a_script_that_got_into_the_page_all_the_same(chromium, url):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(url)

    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "document.title = 'evil'";
          document.body.append(script);
          const image = document.createElement("div");
          image.innerHTML = "<img src=x onerror=\\"document.title = 'evil'\\">";
          document.body.append(image);
        }"""
    )
    page.wait_for_timeout(100)

    assert page.title() == "Potluck"
    context.close()


def test_the_join_line_is_copied_with_the_keyboard_and_has_a_code(url, look):
    page = look(url, permissions=["clipboard-read", "clipboard-write"])
    page.locator(".command button").focus()

    page.keyboard.press("Enter")

    until(page, "document.querySelector('.command button').textContent === 'copied'")
    assert page.evaluate("navigator.clipboard.readText()") == JOIN
    page.locator("summary").press("Enter")
    until(page, "document.querySelector('.qr').naturalWidth > 0 || document.querySelector('.qr').complete")
    assert page.locator(".qr").bounding_box()["width"] > 100


def test_the_whole_page_is_reached_with_the_tab_key(url, look):
    page = look(url)
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName.toLowerCase()"))

    wanted = {"theme", "code", "button", "summary", "peers", "rounds"}
    assert wanted <= set(reached)


def test_the_colours_can_be_chosen_and_are_remembered(url, look):
    page = look(url, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator("#theme").click()
    page.locator("#theme").click()

    dark = page.evaluate(ground)
    page.reload()

    assert dark != light
    assert page.evaluate(ground) == dark
    assert page.locator("#theme").get_attribute("aria-label") == "Colours: dark"


def test_several_runs_stand_side_by_side(url, shown, look):
    shown.runs = (run(), run(fingerprint="cd" * 32, name="the other", version=7))
    page = look(url)
    assert page.locator("#name").inner_text() == "recipes of the street"

    page.get_by_role("button", name="the other").click()

    assert page.locator("#name").inner_text() == "the other"
    assert page.locator("#figures dd b").first.inner_text() == "7"


def test_a_page_that_is_closed_is_no_longer_served(url, shown, look, chromium):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#peers table")
    assert shown.viewers >= 1
    before = shown.viewers

    context.close()

    for _ in range(200):
        if shown.viewers < before:
            break
        time.sleep(0.05)
    assert shown.viewers < before


def test_a_source_that_ends_leaves_the_last_state_and_says_so(chromium):
    with served(Shown()) as address:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#peers table")

    page.wait_for_selector("#line[data-state=lost]")
    assert "anna" in page.locator("#peers").inner_text()
    context.close()
