"""Clients that send too much or too slowly, or read too slowly: raw sockets against the server."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

from running import HELLO, Running, null, until

Start = Callable[..., Running]


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("localhost", server.port), timeout=10)


def read_all(client: socket.socket) -> bytes:
    """Everything until the server hangs up."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def post(path: str, body: bytes, extra: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n%b\r\n" % (len(body), extra) + body


def test_a_head_without_end_is_refused(serving: Start) -> None:
    server = serving(max_head=4096)
    for start in (b"GET /version HTTP/1.1\r\nx: ", b"GET /", b"GET / HTTP/1.1\r\n" + b"a: b\r\n"):
        with connect(server) as client:
            client.sendall(start + b"y" * 3000)
            client.sendall(b"y" * 3000)
            assert b" 431 " in read_all(client), start


def test_many_headers_in_one_piece_are_refused(serving: Start) -> None:
    server = serving(max_head=4096)
    with connect(server) as client:
        client.sendall(
            b"GET /version HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 2000 + b"\r\n"
        )
        assert b" 431 " in read_all(client)
    assert server.ask("/version").status == 200


def test_a_slow_head_ends(serving: Start) -> None:
    server = serving(read_timeout=0.3)
    with connect(server) as client:
        for byte in b"GET /version":
            try:
                client.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.05)
        assert b" 408 " in read_all(client)


def test_silence_ends(serving: Start) -> None:
    server = serving(read_timeout=0.2)
    with connect(server) as client:
        assert b" 408 " in read_all(client)


def test_a_slow_body_ends(serving: Start) -> None:
    server = serving(read_timeout=0.3)
    with connect(server) as client:
        client.sendall(post("/v1/chat/completions", b"x" * 100)[:-50])
        assert b" 408 " in read_all(client)
    assert until(lambda: not server.server.server_state.connections)


def test_an_idle_connection_ends(serving: Start) -> None:
    server = serving(idle_timeout=0.2)
    with connect(server) as client:
        client.sendall(b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n")
        began = time.monotonic()
        assert b" 200 " in read_all(client)
        assert time.monotonic() - began < 5


def test_a_body_that_is_too_large(serving: Start) -> None:
    server = serving(max_body=2000)
    assert server.ask("/v1/chat/completions", b"x" * 2001).status == 413
    chunked = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with connect(server) as client:
        client.sendall(chunked + b"transfer-encoding: chunked\r\n\r\n")
        client.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
        assert b" 413 " in client.recv(65536)
    assert server.ask("/version").status == 200


def test_a_reader_that_stalls_is_cut_off_and_its_answer_cancelled(serving: Start) -> None:
    """Its window is large, so the answer outgrows what the connection buffers."""
    server = serving(null(window=16384, pages=4096 * 4), write_timeout=0.5)
    body = {
        "messages": HELLO,
        "stream": True,
        "ignore_eos": True,
        "n": 4,
        "logprobs": True,
        "top_logprobs": 20,
        "max_tokens": 3000,
    }
    with connect(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(post("/v1/chat/completions", json.dumps(body).encode()))
        assert client.recv(100)
        assert until(lambda: not server.idle())
        # Others are served while this one stalls.
        assert server.chat().status == 200
        assert until(lambda: server.idle(), 20)
        assert server.engine.metrics()["cancelled"] == 1


def test_pipelined_requests_are_answered_in_order(null_server: Running) -> None:
    one = b"GET %b HTTP/1.1\r\nhost: localhost\r\n%b\r\n"
    with connect(null_server) as client:
        client.sendall(one % (b"/version", b"") + one % (b"/health", b"connection: close\r\n"))
        got = read_all(client)
    assert got.index(b'"version"') < got.index(b'"status":"ok"')


def test_what_is_not_http(null_server: Running) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00", b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with connect(null_server) as client:
            client.sendall(sent)
            assert b" 400 " in read_all(client)
    assert null_server.ask("/version").status == 200
