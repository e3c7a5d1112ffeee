"""A real headless Chromium for tests."""

import os
import shutil

import pytest

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium_path():
    """Where Chromium is; skips the test where there is none, unless it must be there."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        reason = "Chromium is not installed (`apt-get install chromium`)"
        if os.environ.get("POTLUCK_NEEDS_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


# of a module, not of the session: while playwright's own event loop lives, no asynchronous test can run
@pytest.fixture(scope="module")
def chromium():
    """A real headless Chromium."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def look(chromium):
    """Open an address in a fresh context; return the page, whose errors fail the test."""
    contexts, errors = [], []

    def open_page(url, *, width=1280, height=900, awaited="#peers table", **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(url)
        page.wait_for_selector("#line[data-state=live]")
        page.wait_for_selector(awaited)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors, errors
