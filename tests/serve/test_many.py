"""Many clients at once: nobody's answer depends on the others, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from running import Running, null, until

Start = Callable[..., Running]
End = Literal["complete", "cancelled", "error"]
NULL_SERVER = Path(__file__).with_name("null_server.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}


def request(stream: bool, text: str, **fields: Any) -> bytes:
    asked = {"messages": [{"role": "user", "content": text}], "stream": stream, "temperature": 0}
    body = json.dumps({**asked, "max_tokens": 16, "ignore_eos": True} | fields).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def ask(port: int, sent: bytes) -> bytes:
    """The whole answer, head and body."""
    reader, writer = await asyncio.open_connection("localhost", port)
    try:
        writer.write(sent)
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def ended(answer: bytes) -> End:
    if not answer.startswith(b"HTTP/1.1 200"):
        return "error"
    whole = b'"object":"chat.completion"' in answer and answer.rstrip().endswith(b"}")
    return "complete" if whole or b"data: [DONE]" in answer else "error"


async def client(port: int, rng: random.Random) -> End:
    sent = request(rng.random() < 0.5, "x" * rng.randrange(1, 200), n=rng.choice((1, 1, 2)))
    asking = asyncio.create_task(ask(port, sent))
    if rng.random() < 0.4:
        await asyncio.sleep(rng.random() * 2)
        asking.cancel()
    try:
        return ended(await asking)
    except asyncio.CancelledError:
        return "cancelled"
    except OSError:
        return "error"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_a_thousand_requests_with_random_cancels(serving: Start) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = serving(null(max_num_sequence=8))

    async def all_of_them() -> Counter[End]:
        rngs = [random.Random(i) for i in range(1000)]
        return Counter(await asyncio.gather(*(client(server.port, rng) for rng in rngs)))

    server.chat()
    baseline = open_files()
    ends = asyncio.run(all_of_them())
    assert ends.total() == 1000
    assert ends["error"] == 0
    assert ends["complete"] >= 500
    assert ends["cancelled"] >= 50
    assert until(server.idle)
    assert until(lambda: open_files() <= baseline)
    assert server.app.state.metrics.open == 0
    found = server.engine.metrics()
    assert found["failed"] == 0
    assert found["requests"] <= 1001
    server.engine._core.scheduler.check()


def test_alone_and_among_others_the_same(serving: Start) -> None:
    server = serving(null(pages=2048))
    fields = {"logprobs": True, "top_logprobs": 3}
    asked = request(False, "the one", **fields)
    alone = choices(asyncio.run(ask(server.port, asked)))

    async def crowd() -> list[bytes]:
        others = [request(i % 2 == 0, "y" * (i + 1), n=2) for i in range(64)]
        asks = [ask(server.port, sent) for sent in (*others[:32], asked, *others[32:], asked)]
        return await asyncio.gather(*asks)

    answers = asyncio.run(crowd())
    assert choices(answers[32]) == alone
    assert choices(answers[-1]) == alone
    assert {ended(answer) for answer in answers} == {"complete"}


def choices(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["choices"]


def test_more_than_the_server_takes(serving: Start) -> None:
    server = serving(max_requests=2)

    async def five() -> list[bytes]:
        return await asyncio.gather(
            *(ask(server.port, request(False, "x", max_tokens=100)) for _ in range(5))
        )

    answers = asyncio.run(five())
    busy = [answer for answer in answers if b" 503 " in answer[:20]]
    assert busy
    assert all(b"retry-after: 1" in answer for answer in busy)
    assert all(ended(answer) == "complete" for answer in answers if answer not in busy)
    assert server.ask("/health").status == 200


def test_stopping_finishes_what_was_accepted(serving: Start) -> None:
    server = serving()

    async def stop_amid() -> list[bytes]:
        asks = [
            asyncio.create_task(ask(server.port, request(i % 2 == 0, "x", max_tokens=150)))
            for i in range(20)
        ]
        while server.app.state.metrics.open < 20:
            await asyncio.sleep(0.001)
        server.server.stop()
        return await asyncio.gather(*asks)

    answers = asyncio.run(stop_amid())
    assert Counter(map(ended, answers)) == {"complete": 20}
    server.thread.join(10)
    assert not server.thread.is_alive()


def test_what_is_not_done_in_time_is_told(serving: Start) -> None:
    server = serving(null(window=16384, pages=4096), grace=0.2)

    async def stop_amid() -> list[bytes]:
        long = {"max_tokens": 16000, "ignore_eos": True}
        sent = [request(False, "x", **long), request(True, "x", **long)]
        asks = [asyncio.create_task(ask(server.port, one)) for one in sent]
        while server.app.state.metrics.open < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        server.server.stop()
        return await asyncio.gather(*asks)

    whole, streamed = asyncio.run(stop_amid())
    assert b" 503 " in whole[:20]
    assert b"the server is stopping" in whole
    assert b"the server is stopping" in streamed
    assert b"[DONE]" not in streamed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_no_answer(sent: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, str(NULL_SERVER)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    found = re.search(r":(\d+)$", process.stdout.readline().strip())
    assert found, "the server did not say where it listens"
    port = int(found[1])

    async def load() -> Counter[str]:
        """Each client asks again and again; refused connections end it, lost answers count."""
        results: Counter[str] = Counter()

        async def again(stream: bool) -> None:
            while True:
                try:
                    reader, writer = await asyncio.open_connection("localhost", port)
                except OSError:
                    return
                writer.write(request(stream, "x"))
                answer = b""
                with contextlib.suppress(OSError):
                    answer = await reader.read()
                writer.close()
                results[ended(answer) if answer else "unanswered"] += 1

        tasks = [asyncio.create_task(again(i % 2 == 0)) for i in range(16)]
        await asyncio.sleep(1)
        process.send_signal(sent)
        await asyncio.gather(*tasks)
        return results

    try:
        results = asyncio.run(load())
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stdout.close()
    assert results["complete"] > 16
    assert results["error"] == 0
    assert results["unanswered"] == 0


def test_a_long_prompt_keeps_nobody_waiting(serving: Start) -> None:
    """It is made ready on another thread, so others are answered meanwhile."""
    server = serving(null(window=2**20, pages=2**18))
    slow, prepared = threading.Event(), server.engine.tokenizer.encode

    def encode(text: str, **settings: Any) -> list[int]:
        if len(text) > 5000:
            assert slow.wait(10)
        return prepared(text, **settings)

    server.engine.tokenizer.encode = encode  # type: ignore[method-assign]

    async def both() -> tuple[bytes, bytes]:
        long = asyncio.create_task(ask(server.port, request(False, "x" * 6000, max_tokens=2)))
        await asyncio.sleep(0.05)
        short = await ask(server.port, request(False, "x"))
        assert not long.done()
        slow.set()
        return await long, short

    assert [ended(answer) for answer in asyncio.run(both())] == ["complete"] * 2
