"""What tests do with the chat page: write to it, wait for answers, see what it asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Open = Callable[..., Any]


def watched(context: Any, complaints: list[str], expected: str | None = None) -> Any:
    """A page whose errors and warnings are noted, but for those that contain `expected`."""

    def complain(text: str) -> None:
        if expected is None or expected not in text:
            complaints.append(text)

    context.set_default_timeout(10_000)
    page = context.new_page()
    page.on("console", lambda m: complain(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complain(str(error)))
    return page


def ready(page: Any) -> Any:
    """The page once it knows its models."""
    page.locator("#model", has_text="scripted").wait_for()
    return page


def say(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


def answers(page: Any) -> Any:
    return page.locator("article.assistant .text")


def done(page: Any, count: int = 1) -> None:
    """Wait until so many answers are complete."""
    page.locator("article.assistant footer button", has_text="Regenerate").wait_for()
    page.locator("#send").wait_for(state="visible")
    assert answers(page).count() == count


def sent(page: Any) -> list[Any]:
    """What the page asks from now on, as the bodies of its requests."""
    bodies: list[Any] = []
    page.on(
        "request",
        lambda asked: bodies.append(asked.post_data_json) if asked.method == "POST" else None,
    )
    return bodies
