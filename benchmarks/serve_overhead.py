"""What serving itself costs: requests a second over a device that computes nothing.

    python benchmarks/serve_overhead.py [--seconds 5] [--profile]

The server is a process of its own on one core, the clients are on another. Each request is a chat
of 16 tokens; 64 connections ask again as soon as they are answered. `requests_per_core_second` is
by the time that the server had of its core, so other programs on a busy machine do not count.
`--profile` also says where the server's time goes. Writes results/serve_overhead.json.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "src"))

RESULTS = Path(__file__).parent / "results" / "serve_overhead.json"
TOKENS = 16
CONNECTIONS = 64
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def serve_null(profile: str | None) -> None:
    """The server's process: prints its address, serves until it is told to stop."""
    from sterna import AsyncEngine
    from sterna.engine.options import EngineOptions, Mode
    from sterna.serve.options import ServeOptions
    from sterna.serve.server import serve

    if len(CORES) > 1:
        os.sched_setaffinity(0, {CORES[0]})
    profiles: list[cProfile.Profile] = []
    if profile is not None:
        _profile_threads(profiles)
    # All requests are the same: without the prefix cache each one's prompt is computed.
    options = EngineOptions(mode=Mode.SERVER, prefix_cache=False)
    engine = AsyncEngine(device="null", options=options)
    main = cProfile.Profile(time.thread_time)
    if profile is not None:
        main.enable()
    serve({"null": engine}, ServeOptions(port=0), lambda url: print(url, flush=True))
    if profile is not None:
        main.disable()
        stats = pstats.Stats(main, *profiles)
        stats.dump_stats(profile)


def _profile_threads(profiles: list[cProfile.Profile]) -> None:
    """Profile every thread that starts from now on."""
    run = threading.Thread.run

    def profiled(self: threading.Thread) -> None:
        own = cProfile.Profile(time.thread_time)
        profiles.append(own)
        own.runcall(run, self)

    threading.Thread.run = profiled  # type: ignore[method-assign]


class Client(asyncio.Protocol):
    """Asks, counts the answer, asks again."""

    def __init__(self, sent: bytes, end: bytes, done: list[float]) -> None:
        self._sent, self._end, self._done = sent, end, done
        self._got = b""
        self._began = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._got, self._began = b"", time.perf_counter()
        self._transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if self._got.endswith(self._end):
            assert self._got.startswith(b"HTTP/1.1 200"), self._got[:300]
            self._done.append(time.perf_counter() - self._began)
            self._ask()


def request(stream: bool) -> bytes:
    asked = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": stream,
    }
    body = json.dumps(asked).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def processor_seconds(pid: int) -> float:
    """What a process has used of its core so far; other programs' share is not in it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(port: int, pid: int, stream: bool, seconds: float) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    done: list[float] = []
    end = b"0\r\n\r\n" if stream else b"}"
    make = lambda: Client(request(stream), end, done)  # noqa: E731
    connections = [
        await loop.create_connection(make, "localhost", port) for _ in range(CONNECTIONS)
    ]
    await asyncio.sleep(1)
    done.clear()
    began, used = time.perf_counter(), processor_seconds(pid)
    await asyncio.sleep(seconds)
    rate = len(done) / (time.perf_counter() - began)
    core = len(done) / (processor_seconds(pid) - used)
    times = sorted(done)
    for transport, _ in connections:
        transport.abort()
    return {
        "requests_per_core_second": round(core, 1),
        "requests_per_s": round(rate, 1),
        "tokens_per_s": round(rate * TOKENS, 1),
        "latency_p50_ms": round(times[len(times) // 2] * 1000, 2),
        "latency_p99_ms": round(times[len(times) * 99 // 100] * 1000, 2),
    }


def shares(stats: pstats.Stats) -> dict[str, float]:
    """The share of each room of Sterna, and of each library, in the profiled time.

    Time in functions written in C is that of whoever called them.
    """
    spent: Counter[str] = Counter()
    for (path, _, _), (_, _, own, _, callers) in stats.stats.items():  # type: ignore[attr-defined]
        if path != "~":
            spent[_room(path)] += own
        for (caller, _, _), (_, _, part, _) in callers.items() if path == "~" else ():
            spent[_room(caller)] += part
    total = spent.total()
    return {room: round(part / total, 3) for room, part in spent.most_common(8)}


def _room(path: str) -> str:
    for mark in ("/src/", "/site-packages/"):
        if mark in path:
            return "/".join(path.rpartition(mark)[2].split("/")[: 2 if mark == "/src/" else 1])
    return "python" if path != "~" else "other"


def measure(seconds: float, profile: str | None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--serve", *(["--profile-to", profile] if profile else [])]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline().strip().rpartition(":")[2])
    if len(CORES) > 1:
        os.sched_setaffinity(0, set(CORES[1:]))
    try:
        whole = asyncio.run(load(port, server.pid, False, seconds))
        streamed = asyncio.run(load(port, server.pid, True, seconds))
    finally:
        server.terminate()
        server.wait(30)
    return {"whole": whole, "streamed": streamed}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--profile-to", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve_null(args.profile_to)
        return
    found: dict[str, Any] = measure(args.seconds, None)
    print(json.dumps(found, indent=2))
    if args.profile:
        path = str(Path(os.environ.get("TMPDIR", "/tmp")) / f"serve_overhead_{os.getpid()}.prof")
        measure(args.seconds, path)
        stats = pstats.Stats(path)
        os.remove(path)
        stats.sort_stats("tottime").print_stats(45)
        found["shares_of_time"] = shares(stats)
        print(json.dumps(found["shares_of_time"], indent=2))
    RESULTS.write_text(
        json.dumps({"connections": CONNECTIONS, "tokens": TOKENS, **found}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
