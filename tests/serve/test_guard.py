"""Who may ask: keys, hosts and origins, on every route alike."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Running

from sterna.base.errors import UsageError
from sterna.serve.app import OPERATIONS
from sterna.serve.options import ServeOptions, is_loopback, read_keys

Start = Callable[..., Running]
ROUTES = sorted({*(o.path.replace("{model}", "null") for o in OPERATIONS), "/openapi.json", "/no"})


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def locked() -> object:
    from running import start

    server = start(api_keys=("first", "second"))
    yield server
    server.stop()


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_wants_a_key(locked: Running, path: str) -> None:
    for headers in ({}, bearer("wrong"), bearer(""), {"authorization": "first"}):
        refused = locked.ask(path, headers=headers)
        assert refused.status == 401, (path, headers)
        assert refused.error["type"] == "authentication_error"
        assert "www-authenticate" in refused.headers
    assert locked.ask(path, headers=bearer("second")).status != 401


def test_each_key_opens_and_a_browser_can_send_it(locked: Running) -> None:
    for key in ("first", "second"):
        assert locked.ask("/version", headers=bearer(key)).status == 200
    basic = base64.b64encode(b"anyone:second").decode()
    assert locked.ask("/version", headers={"authorization": f"Basic {basic}"}).status == 200
    assert locked.ask("/version", headers={"authorization": "Basic !!"}).status == 401
    assert locked.ask("/version", headers=bearer("first second")).status == 401


def test_a_key_is_no_part_of_another(locked: Running) -> None:
    for key in ("firs", "firstt", "First", "first,second"):
        assert locked.ask("/version", headers=bearer(key)).status == 401


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "evil.example:80", ""])
def test_a_strangers_name_is_refused(null_server: Running, host: str) -> None:
    refused = null_server.ask("/v1/models", headers={"host": host})
    assert refused.status in (400, 403)
    if refused.status == 403:
        assert refused.error["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "[::1]:80", "[fe80::1]:8000"])
def test_own_names_and_addresses_pass(null_server: Running, host: str) -> None:
    assert null_server.ask("/version", headers={"host": host}).status == 200


def test_a_name_may_be_allowed(serving: Start) -> None:
    server = serving(allow_hosts=("llm.example",))
    assert server.ask("/version", headers={"host": "llm.example:443"}).status == 200
    assert server.ask("/version", headers={"host": "other.example"}).status == 403


def test_other_pages_may_not_ask(null_server: Running) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:1", "file://"):
        refused = null_server.ask("/v1/models", headers={"origin": origin})
        assert (refused.status, refused.error["code"]) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in refused.headers
    own = {"origin": null_server.url, "host": f"localhost:{null_server.port}"}
    assert null_server.ask("/v1/models", headers=own).status == 200


def test_cors_when_asked_for(serving: Start) -> None:
    page = "https://app.example"
    server = serving(allow_origins=(page,), api_keys=("key",))
    asked = {
        "origin": page,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-more",
    }
    before = server.ask("/v1/chat/completions", method="OPTIONS", headers=asked)
    assert before.status == 204
    assert before.headers["access-control-allow-origin"] == page
    assert before.headers["access-control-allow-headers"] == "authorization,x-more"
    assert server.ask("/version", headers={"origin": page}).status == 401  # no key is no key
    answer = server.ask("/version", headers={"origin": page, **bearer("key")})
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == page
    other = server.ask("/version", headers={"origin": "https://b.example", **bearer("key")})
    assert other.status == 403


def test_no_answer_to_other_machines_without_a_key() -> None:
    anywhere = "::"
    with pytest.raises(UsageError, match="--api-key"):
        ServeOptions(host=anywhere)
    with pytest.raises(UsageError, match="--api-key"):
        ServeOptions(host="myhost.example")
    assert ServeOptions(host=anywhere, api_keys=("k",)).host == anywhere


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("::1", True), ("[::1]", True), ("::", False), ("example", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"port": True},
        {"grace": float("nan")},
        {"max_body": 3},
        {"allow_origins": ("example.com",)},
        {"allow_origins": ("https://example.com/",)},
        {"api_keys": ("",)},
        {"api_keys": ("two words",)},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ServeOptions(**wrong)  # type: ignore[arg-type]


def test_keys_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\none\n\n  two  \n")
    assert list(read_keys(path)) == ["one", "two"]
    path.write_text("# none\n")
    with pytest.raises(UsageError, match="no API key"):
        read_keys(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_keys(tmp_path / "absent")


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(ServeOptions(api_keys=("secret",)))
