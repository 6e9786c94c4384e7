"""The chat page of `sterna serve --ui`, used as people use it."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from browsing import answers, done, ready, say, sent
from running import start
from scripted_model import scripted

import sterna.serve
from sterna.engine.engine import AsyncEngine
from sterna.engine.options import SamplingOptions

UI = Path(sterna.serve.__file__).parent / "ui"


def test_a_conversation(page):
    bodies = sent(page)
    say(page, "hello")
    done(page)
    assert answers(page).first.inner_text() == "hello"
    note = page.locator("article.assistant .note").first.inner_text()
    assert re.fullmatch(
        r"6 tokens · [\d.]+ tokens/s · first after \S+ m?s · 0 of 22 prompt tokens reused", note
    )
    say(page, "and again")
    done(page, 2)
    assert answers(page).nth(1).inner_text() == "and again"
    assert "0 of" not in page.locator("article.assistant .note").nth(1).inner_text()
    roles = [message["role"] for message in bodies[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert bodies[1]["stream_options"] == {"include_usage": True}
    assert page.locator("#used").inner_text().endswith("of 8,192 tokens")


def test_answers_stream_and_can_be_stopped(slow_page):
    page = slow_page
    say(page, "a long answer that takes its time to come, letter by letter")
    answers(page).get_by_text("a long").wait_for()
    assert page.locator("#send").is_hidden()
    page.click("#stop")
    page.locator(".note", has_text="stopped").wait_for()
    assert "letter" not in answers(page).inner_text()
    page.press("body", "Alt+r")
    answers(page).get_by_text("a long").wait_for()
    page.keyboard.press("Escape")
    page.locator(".note", has_text="stopped").wait_for()
    assert answers(page).count() == 1


def test_stopping_frees_the_server(slow_page, slow_server):
    say(slow_page, "a long answer that would take two seconds")
    answers(slow_page).get_by_text("a l").wait_for()
    assert slow_server.engine.metrics()["running"] == 1
    slow_page.click("#stop")
    slow_page.locator(".note", has_text="stopped").wait_for()
    for _ in range(100):
        if slow_server.engine.metrics()["running"] == 0:
            return
        slow_page.wait_for_timeout(10)
    raise AssertionError("the answer still runs")


def test_an_answer_is_written_again(page):
    bodies = sent(page)
    say(page, "hello")
    done(page)
    page.get_by_role("button", name="Regenerate").click()
    done(page)
    assert bodies[0] == bodies[1]


def test_a_question_is_edited(page):
    for text in ("one", "two"):
        say(page, text)
        done(page, 1 if text == "one" else 2)
    page.press("#question", "ArrowUp")
    assert page.input_value("#question") == "two"
    assert answers(page).count() == 1
    page.locator("article.user").hover()
    page.get_by_role("button", name="Edit").click()
    assert page.input_value("#question") == "one"
    assert answers(page).count() == 0


def test_system_prompt_and_sampling_are_sent(page):
    bodies = sent(page)
    page.press("body", "Alt+s")
    page.fill("#system", "be brief")
    given = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.05, "max_tokens": 4, "seed": 3,
        "repetition_penalty": 1.1, "presence_penalty": -0.5, "frequency_penalty": 0.25,
        "stop": "zz",
    }  # fmt: skip
    for name, value in given.items():
        page.fill(f"#options [name={name}]", str(value))
    say(page, "hello")
    done(page)
    assert bodies[0].items() >= given.items()
    assert bodies[0]["messages"][0] == {"role": "system", "content": "be brief"}
    assert answers(page).inner_text() == "hell"
    assert "cut off at max tokens" in page.locator(".note").inner_text()
    page.reload()
    ready(page)
    assert page.input_value("#options [name=top_k]") == "7"
    assert answers(page).inner_text() == "hell"
    page.press("body", "Alt+s")
    page.click("#defaults")
    page.get_by_role("button", name="Regenerate").click()
    answers(page).get_by_text("hello").wait_for()
    assert not given.keys() & bodies[1].keys()


def test_an_option_out_of_range_is_not_sent(page):
    bodies = sent(page)
    page.press("body", "Alt+s")
    page.fill("#options [name=top_p]", "2")
    page.press("body", "Alt+s")
    say(page, "hello")
    assert page.locator("#settings").is_visible()
    assert page.evaluate("document.activeElement.name") == "top_p"
    assert bodies == []


def test_the_controls_are_those_of_the_engine():
    """Their names and ranges are declared once, in SamplingOptions; the page must agree."""
    found = {}

    class Inputs(HTMLParser):
        def handle_starttag(self, tag, attributes):
            named = dict(attributes)
            if tag == "input" and "name" in named:
                found[named["name"]] = named

    Inputs().feed((UI / "index.html").read_text())
    options = {option.name: option.metadata for option in fields(SamplingOptions)}
    assert found.keys() <= options.keys()
    for name, attributes in found.items():
        for bound, key in (("min", "lo"), ("max", "hi")):
            limit = options[name].get(key)
            if name != "seed":  # its range is beyond what a page can count
                written = attributes.get(bound)
                assert (None if written is None else float(written)) == limit, f"{name}, {bound}"


def test_new_chat_forgets_and_the_keyboard_does_it_all(page):
    page.keyboard.type("hello")  # the field has the focus from the start
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    page.keyboard.press("Enter")
    done(page)
    assert page.locator("article.user .text").inner_text() == "hello\nthere"
    page.keyboard.press("Alt+n")
    assert answers(page).count() == 0
    assert page.locator("#empty").is_visible()
    assert page.evaluate("document.activeElement.id") == "question"
    page.reload()
    assert ready(page).locator("article").count() == 0


def test_what_a_server_refuses_is_told(opened):
    page = ready(opened(expected="400"))
    say(page, "x" * 9000)
    alert = page.locator("footer [role=alert]")
    alert.wait_for()
    assert "8192" in alert.inner_text()
    say(page, "short")  # the question that could not be asked is dropped
    done(page)
    assert page.locator("article.user").count() == 1


def test_a_server_that_is_gone_is_told(opened):
    server = start({"scripted": scripted(None, face=AsyncEngine)}, ui=True)
    page = ready(opened(server, expected="ERR_CONNECTION_REFUSED"))
    server.stop()
    say(page, "hello")
    page.get_by_text("the server cannot be reached").wait_for()
    page.get_by_role("button", name="Try again").wait_for()


def test_an_answer_that_breaks_off_is_told(page):
    chunk = {"choices": [{"index": 0, "delta": {"content": "half"}, "finish_reason": None}]}
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            content_type="text/event-stream", body=f"data: {json.dumps(chunk)}\n\n"
        ),
    )
    say(page, "hello")
    page.get_by_text("the connection ended before the answer did").wait_for()
    assert answers(page).inner_text() == "half"


def test_reasoning_is_shown_apart(opened):
    thought = scripted("<think>\nlet *me* think\n</think>\n\n**42**", face=AsyncEngine)
    server = start({"scripted": thought}, ui=True)
    try:
        page = ready(opened(server))
        bodies = sent(page)
        say(page, "hello")
        done(page)
        assert answers(page).inner_text() == "42"
        assert page.locator("details.reasoning .thoughts").text_content() == "let *me* think"
        assert "of them thinking" in page.locator("article.assistant .note").inner_text()
        say(page, "again")
        done(page, 2)
        assert bodies[1]["messages"][1] == {"role": "assistant", "content": "**42**"}
    finally:
        server.stop()


def test_a_key_is_asked_for_and_kept_for_the_tab(opened, server):
    page = opened(expected="401")
    keys = []

    def guard(route):
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer sesame":
            route.continue_()
        else:
            error = {"error": {"message": "the API key is wrong"}}
            route.fulfill(status=401, content_type="application/json", body=json.dumps(error))

    page.route("**/v1/**", guard)
    page.reload()
    page.get_by_text("the API key is wrong").wait_for()
    page.fill("#key", "sesame")
    page.press("#key", "Enter")
    ready(page)
    say(page, "hello")
    done(page)
    assert set(keys) == {None, "Bearer sesame"}
    page.reload()
    ready(page)
    assert keys[-1] == "Bearer sesame"
    assert page.evaluate("localStorage.getItem('sterna.key')") is None


def test_a_server_with_a_key_lets_its_page_in(opened):
    server = start({"scripted": scripted(None, face=AsyncEngine)}, ui=True, api_keys=("sesame",))
    try:
        login = {"username": "", "password": "sesame"}
        page = ready(opened(server, http_credentials=login))
        say(page, "hello")
        done(page)
    finally:
        server.stop()


def test_several_models_are_offered(opened):
    names = ("scripted", "other")
    engines = {name: scripted(None, face=AsyncEngine) for name in names}
    server = start(engines, ui=True)
    try:
        page = ready(opened(server))
        bodies = sent(page)
        page.select_option("#model", "other")
        page.reload()
        ready(page)
        say(page, "hello")
        done(page)
        assert bodies[0]["model"] == "other"
    finally:
        server.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(opened, scheme):
    page = ready(opened(color_scheme=scheme))
    background = "getComputedStyle(document.body).backgroundColor"
    dark = "rgb(20, 25, 29)"
    assert (page.evaluate(background) == dark) == (scheme == "dark")
    page.press("body", "Alt+s")
    page.select_option("#theme", "light" if scheme == "dark" else "dark")
    assert (page.evaluate(background) == dark) == (scheme == "light")


def test_a_small_screen_has_no_sideways_scrolling(opened):
    page = ready(opened())
    page.set_viewport_size({"width": 340, "height": 600})
    say(page, "`" + "long" * 60 + "`\n\n" + "wide" * 60)
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_one_who_scrolled_up_is_left_alone(slow_page):
    page = slow_page
    page.set_viewport_size({"width": 600, "height": 300})
    say(page, "a\n" * 9 + "end  \n" * 9)
    page.locator("#log").hover()
    answers(page).locator("br").first.wait_for(state="attached")
    page.mouse.wheel(0, -2000)
    page.locator("#latest").wait_for()
    before = page.evaluate("document.querySelector('#log').scrollTop")
    page.wait_for_timeout(300)
    assert page.evaluate("document.querySelector('#log').scrollTop") == before
    page.click("#latest")
    page.locator("#latest").wait_for(state="hidden")
    page.click("#stop")


def test_everything_has_a_name_for_those_who_do_not_see(page):
    nameless = """[...document.querySelectorAll('button, input, select, textarea')].filter((e) =>
        !e.labels?.length && !e.getAttribute('aria-label') && !e.textContent.trim()).length"""
    assert page.evaluate(nameless) == 0
    assert page.locator("#log").get_attribute("role") == "log"
    assert page.locator("main, header").count() == 2


def test_the_page_asks_nobody_else(page, server):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    ready(page)
    say(page, "![](http://example.org/x.png) <img src=http://example.org/y.png>")
    done(page)
    assert asked
    assert all(address.startswith(server.url) for address in asked)


@pytest.mark.slow
def test_the_demo_model_talks(opened, tmp_path):
    """The command as users start it."""
    command = [sys.executable, "-m", "sterna", "serve", "--ui", "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(UI.parents[2]), "STERNA_CACHE": str(tmp_path)}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as program:
        try:
            told = next(line for line in program.stderr if "serving on" in line)
            url = re.search(r"http://[^;]+", told)[0]
            page = opened(SimpleNamespace(url=url))
            page.locator("#model", has_text="sterna-demo").wait_for()
            page.press("body", "Alt+s")
            page.fill("#options [name=temperature]", "0")
            say(page, "What is 12 + 30?")
            done(page)
            assert "42" in answers(page).inner_text()
        finally:
            program.terminate()
