"""Who may see the page, and what it says to everybody else."""

import http.client
from urllib.parse import parse_qs, urlsplit

import pytest
from pages import JOIN, Shown, run, served

from coordinator.web.gate import is_own_host


@pytest.fixture(scope="module")
def page():
    with served(Shown()) as url:
        yield urlsplit(url)


def get(page, path, *, host=None, cookie=None, method="GET"):
    connection = http.client.HTTPConnection(page.hostname, page.port, timeout=10)
    headers = {"Host": host or page.netloc, **({"Cookie": cookie} if cookie else {})}
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    answer.text = "" if "event-stream" in answer.getheader("content-type", "") else answer.read().decode()
    connection.close()
    return answer


def cookie_of(page):
    return get(page, f"/?{page.query}").getheader("set-cookie").partition(";")[0]


def test_the_token_is_named_once_and_becomes_a_cookie_that_no_script_can_read(page):
    answer = get(page, f"/?{page.query}")

    assert answer.status == 303
    assert answer.getheader("location") == "/"
    attributes = answer.getheader("set-cookie").lower()
    assert "httponly" in attributes
    assert "samesite=strict" in attributes
    assert get(page, "/", cookie=cookie_of(page)).status == 200


PATHS = ["/", "/snapshot", "/changes", "/static/main.js", f"/join/{run().fingerprint}.svg", "/nowhere", "/?token=wrong"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cookie", [None, "wrong", "wrong-name", "\x01;;=", "ä" * 50])
def test_without_the_token_every_path_gives_the_same_answer_that_tells_nothing(page, path, cookie):
    name = cookie_of(page).partition("=")[0]
    sent = {"wrong": f"{name}=nonsense", "wrong-name": f"other={parse_qs(page.query)['token'][0]}"}.get(cookie, cookie)

    answer = get(page, path, cookie=sent and sent.encode())

    assert (answer.status, answer.text) == (401, "unauthorized\n")
    assert answer.getheader("server") is None
    assert answer.getheader("access-control-allow-origin") is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "x:y:z"]
)
def test_a_name_that_was_bound_to_this_address_opens_nothing(page, host):
    answer = get(page, "/snapshot", host=host, cookie=cookie_of(page))

    assert answer.status == 421
    assert "recipes" not in answer.text


def test_numbers_localhost_and_the_names_given_are_this_machine():
    for host in (
        "127.0.0.1",
        "127.0.0.1:4041",
        "192.168.1.7:80",
        "[::1]:4041",
        "localhost",
        "LocalHost:1",
        "pc.lan:80",
    ):
        assert is_own_host(host, {"pc.lan"}), host
    for host in ("", "pc.lan.evil", "[evil]:1", "1.2.3"):
        assert not is_own_host(host, {"pc.lan"}), host


def test_every_answer_forbids_what_the_page_does_not_need(page):
    for path in ("/", "/static/main.js", "/snapshot", "/nowhere"):
        answer = get(page, path, cookie=cookie_of(page))
        policy = answer.getheader("content-security-policy")
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.getheader("x-content-type-options") == "nosniff"
        assert answer.getheader("cache-control") == "no-store"


def test_nothing_outside_the_pages_own_files_is_served(page):
    cookie = cookie_of(page)
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/../../__init__.py"):
        assert get(page, path, cookie=cookie).status == 404, path


def test_nothing_can_be_changed_from_the_page(page):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get(page, "/snapshot", cookie=cookie_of(page), method=method).status == 405


def test_the_qr_code_is_of_a_runs_own_join_line_only(page):
    cookie = cookie_of(page)
    good = get(page, f"/join/{run().fingerprint}.svg", cookie=cookie)
    assert good.status == 200
    assert good.getheader("content-type") == "image/svg+xml"
    assert "<path" in good.text
    assert JOIN not in good.text
    assert get(page, "/join/other.svg", cookie=cookie).status == 404
