"""`sterna chat`: one-shot through --prompt and pipes, talking turn by turn, commands, stopping."""

import itertools
import json
import re

import pytest
from scripted_model import ANSWER, scripted

from sterna.base.errors import RequestError, UsageError
from sterna.cli import chat
from sterna.cli.answer import PlainView, bar
from sterna.cli.commands import COMMANDS, Next, obey
from sterna.cli.conversation import Conversation
from sterna.cli.main import main
from sterna.cli.model import SAMPLING


@pytest.fixture
def conversation():
    with scripted() as engine:
        yield Conversation(engine)


class Pieces:
    """A view that keeps what it is given; it stops the answer once it reads `until`."""

    def __init__(self, until=None):
        self.pieces = []
        self._until = until

    def text(self, piece):
        self.pieces.append(piece)
        if "".join(self.pieces) == self._until:
            raise KeyboardInterrupt

    def reasoning(self, piece):
        pass


class Lines:
    """Stands in for the terminal."""

    def __init__(self, *lines):
        self._lines = iter(lines)

    def read(self):
        return next(self._lines, None)


@pytest.fixture
def say(monkeypatch, conversation, capsys):
    """Type lines into a chat; what it printed."""

    def run(*lines, on=conversation):
        monkeypatch.setattr("sterna.cli.terminal.Terminal", lambda status: Lines(*lines))
        chat.talk(on)
        return capsys.readouterr().out

    return run


def test_one_answer_and_nothing_else(model, capsys):
    assert main(["chat", "--prompt", "hi", "--system", "be brief"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (ANSWER + "\n", "")


def test_a_pipe_asks_once(model, stdin, capsys):
    stdin("grüß dich\n".encode())
    assert main(["chat"]) == 0
    assert capsys.readouterr().out == ANSWER + "\n"


@pytest.mark.parametrize(("prompt", "word"), [("", "empty"), (" \n ", "blank")])
def test_nothing_is_no_prompt(prompt, word, model, capsys):
    assert main(["chat", "--prompt", prompt]) == 1
    assert word in capsys.readouterr().err


def test_a_model_without_a_template_is_sent_to_generate(model, capsys):
    model(template=False)
    assert main(["chat", "--prompt", "hi"]) == 1
    err = capsys.readouterr().err
    assert 'sterna generate MODEL --prompt "..."' in err
    assert err.count("\n") == 1


def test_a_source_without_a_template_is_not_even_converted(tmp_path, own_cache, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert main(["chat", str(tmp_path), "--prompt", "hi"]) == 1
    assert f'sterna generate {tmp_path} --prompt "..."' in capsys.readouterr().err
    assert not own_cache.exists()


def test_a_full_window_is_said_on_stderr(model, capsys):
    model(window=24)
    assert main(["chat", "--prompt", "hi"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "ok, f\n"
    assert "the context window of 24 tokens is full" in captured.err


def test_each_turn_sees_the_ones_before(conversation):
    sizes = []
    for text in ("one", "two"):
        conversation.answer(text, Pieces())
        sizes.append(conversation.turns[-1].usage.prompt_tokens)
    assert sizes[0] == len("user: one\nassistant:")
    assert sizes[1] == len(f"user: one\nassistant: {ANSWER}\nuser: two\nassistant:")


def test_the_system_prompt_comes_first_and_outlives_a_reset(conversation):
    obey("/system be brief", conversation)
    conversation.answer("one", Pieces())
    conversation.reset()
    conversation.answer("two", Pieces())
    expected = len("system: be brief\nuser: two\nassistant:")
    assert conversation.turns[-1].usage.prompt_tokens == expected


def test_ctrl_c_stops_the_answer_and_keeps_what_came(conversation):
    turn = conversation.answer("hi", Pieces(until="ok"))
    assert turn.stopped
    assert conversation.messages[-1] == {"role": "assistant", "content": "ok"}
    assert conversation.answer("again", Pieces()).text == ANSWER


def test_ctrl_c_before_the_first_token_takes_the_question_back(conversation):
    turn = conversation.answer("hi", Pieces(until=""))  # the first piece is empty: the role
    assert turn.stopped
    assert conversation.messages == []


def test_a_stopped_pipe_ends_the_program(model, monkeypatch, capsys):
    def interrupt(self, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(PlainView, "text", interrupt)
    assert main(["chat", "--prompt", "hi"]) == 130


def test_an_answer_is_written_again(conversation):
    with pytest.raises(UsageError, match="there is no answer yet"):
        conversation.regenerate(Pieces())
    conversation.answer("hi", Pieces())
    shown = Pieces()
    conversation.regenerate(shown)
    assert "".join(shown.pieces) == ANSWER
    assert [message["content"] for message in conversation.messages] == ["hi", ANSWER]
    conversation.regenerate(Pieces(until=""))  # nothing came: the old answer stays
    assert conversation.messages[-1]["content"] == ANSWER
    assert obey("/regen", conversation) is Next.REGENERATE


def test_talking(say):
    out = say("hi", "", "/exit", "never reached")
    assert out.count(ANSWER) == 1
    assert "tokens/s" in out
    assert "10 tokens" in out  # nine characters and the end


def test_a_mistake_ends_neither_the_chat_nor_the_conversation(say, conversation):
    out = say("hi", "/sat", "/set top_k=x", "x" * 300, "again")
    assert "there is no command /sat; did you mean /stats?" in out
    assert "top_k is 'x', possible is an integer" in out
    assert "the context window is 256 tokens" in " ".join(out.split())
    assert "/reset starts a new conversation" in out
    assert out.count(ANSWER) == 2
    assert len(conversation.messages) == 4


def test_a_full_window_is_said_below_the_answer(say):
    with scripted(window=24) as engine:
        out = " ".join(say("hi", on=Conversation(engine)).split())
    assert "the context window of 24 tokens is full" in out
    assert "/reset starts a new conversation" in out


def test_an_answer_cut_by_max_tokens_says_so(say, conversation):
    out = say("/set max_tokens=3", "hi")
    assert "ok,\n" in out
    assert "cut off at max_tokens" in out
    assert "full" not in out


def test_two_slashes_are_said_not_obeyed(say):
    assert ANSWER in say("//usr")


def test_help_names_every_command(conversation):
    text = obey("/help", conversation)
    assert all(name in text for name in COMMANDS)


def test_set_checks_and_takes_back(conversation):
    obey("/set temperature=0.5; top-k=4;ignore_eos=true;stop=x", conversation)
    expected = {"temperature": 0.5, "top_k": 4, "ignore_eos": True, "stop": ("x",)}
    assert conversation.options == expected
    obey("/set temperature=", conversation)
    assert "temperature" not in conversation.options
    assert "top_k=4" in obey("/set seed=1", conversation)
    shown = obey("/set", conversation)
    assert any(line.split()[:2] == ["top_k", "4"] for line in shown.splitlines())
    assert all(name in shown for name in SAMPLING)


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("/set temperature=-1", RequestError, "temperature is -1.0"),
        ("/set temperature=hot", RequestError, "possible is a number"),
        ("/set temprature=1", RequestError, "did you mean temperature"),
        ("/set n=4", RequestError, "there is no option 'n'"),
        ("/set ignore_eos=maybe", RequestError, "possible are true and false"),
        ("/set temperature", UsageError, "not of the form option=value"),
        ("/frobnicate", UsageError, "possible are /help"),
        ("/stats now", UsageError, "/stats takes nothing after it, found 'now'"),
        ("/json {", UsageError, "the schema is no JSON"),
        ("/json [1]", UsageError, "'[1]' cannot be read"),
        ("/save", UsageError, "/save needs the name of a file"),
        ("/load no-such-file", UsageError, "no-such-file cannot be read"),
    ],
)
def test_wrong_commands_change_nothing(text, error, sentence, conversation):
    with pytest.raises(error, match=re.escape(sentence)):
        obey(text, conversation)
    assert conversation.options == {}
    assert conversation.form is None


def test_stats_count_answers_tokens_and_the_window(conversation):
    assert "answers: 0" in obey("/stats", conversation)
    conversation.answer("hi", Pieces())
    text = obey("/stats", conversation)
    assert "answers: 1 (0 stopped), tokens written: 10" in text
    assert f"context: {len('user: hi assistant:') + 10} of 256 tokens" in text
    conversation.reset()
    assert "context: 0 of 256 tokens" in obey("/stats", conversation)


def test_stats_count_reused_prompt_tokens(conversation):
    for text in ("one", "two"):
        conversation.answer(text, Pieces())
    usages = [turn.usage for turn in conversation.turns]
    reused = sum(usage.prompt_tokens_details.cached_tokens for usage in usages)
    assert reused > 0
    prompts = sum(usage.prompt_tokens for usage in usages)
    assert f"prompt tokens: {prompts}, reused: {reused}" in obey("/stats", conversation)


def test_explain_tells_where_a_prompt_left_the_cache(conversation):
    with pytest.raises(UsageError, match="there was no prompt yet"):
        obey("/explain", conversation)
    conversation.answer("first question", Pieces())
    assert "the first 0 tokens were in the cache" in obey("/explain", conversation)
    conversation.reset()
    conversation.answer("first answer", Pieces())
    told = obey("/explain", conversation)
    same = len("user: first ")
    assert f"the first {same} tokens were in the cache; then it goes on with 'a" in told
    assert "and the cached one most like it with 'q" in told
    conversation.regenerate(Pieces())
    assert obey("/explain", conversation).endswith("tokens were in the cache")


def test_what_a_stopped_answer_fills_is_counted(conversation):
    conversation.answer("hi", Pieces(until="ok"))
    (asked, said) = conversation.messages
    tokens = len(f"user: {asked['content']} assistant: {said['content']} assistant:")
    assert chat.status(conversation).endswith(f"{tokens} of 256")
    assert f"context: {tokens} of 256" in obey("/stats", conversation)


def test_what_a_loaded_conversation_fills_is_counted(conversation, tmp_path):
    conversation.answer("hi", Pieces())
    path = tmp_path / "conversation.json"
    obey(f"/save {path}", conversation)
    conversation.reset()
    obey(f"/load {path}", conversation)
    tokens = len(f"user: hi assistant: {conversation.messages[-1]['content']} assistant:")
    assert chat.status(conversation).endswith(f"{tokens} of 256")


def test_what_the_bottom_line_says(conversation):
    assert chat.status(conversation) == "context ░░░░░░░░░░ 0 of 256"
    for line in ("/set temperature=0;stop=\x1b", "/system be brief", "/json on"):
        obey(line, conversation)
    status = chat.status(conversation)
    assert "system prompt · json_object · temperature=0.0 · stop=('\\x1b',)" in status


@pytest.mark.parametrize(
    ("share", "cells"),
    [
        (-1, "░" * 10),
        (0.01, "▏░░░░░░░░░"),
        (0.5, "█████░░░░░"),
        (0.56, "█████▋░░░░"),
        (2, "█" * 10),
    ],
)
def test_bar(share, cells):
    assert bar(share) == cells


def test_json_sets_the_form_of_answers(conversation, tmp_path):
    assert obey("/json", conversation) == "answers are free text"
    obey("/json on", conversation)
    assert conversation.form == {"type": "json_object"}
    schema = {"type": "object", "properties": {"a b": {"type": "string"}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for text in (json.dumps(schema), str(tmp_path / "schema.json")):
        obey("/json off", conversation)
        assert conversation.form is None
        obey(f"/json {text}", conversation)
        assert conversation.form["json_schema"]["schema"] == schema


def test_a_conversation_is_saved_and_loaded(conversation, tmp_path):
    path = tmp_path / "talk.json"
    obey("/system be brief", conversation)
    obey("/set temperature=0;stop=x", conversation)
    conversation.answer("hi 🐦", Pieces())
    assert obey(f"/save {path}", conversation) == f"saved 2 messages to {path}"
    obey(f"/save {path}", conversation)  # its own kind may be overwritten
    with scripted() as engine:
        other = Conversation(engine)
        assert obey(f"/load {path}", other) == f"loaded 2 messages from {path}"
        assert (other.messages, other.system) == (conversation.messages, "be brief")
        assert other.answer("go on", Pieces()).text == ANSWER
        assert other.options["temperature"] == 0


def test_another_models_conversation_is_told(conversation, tmp_path):
    path = tmp_path / "talk.json"
    obey(f"/save {path}", conversation)
    path.write_text(path.read_text().replace("scripted", "other"))
    assert "they are of other, this is scripted" in obey(f"/load {path}", conversation)


def test_save_overwrites_nothing_else(conversation, tmp_path):
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(UsageError, match="exists and is no conversation"):
        obey(f"/save {path}", conversation)
    assert path.read_text() == "mine"


WHOLE = {"type": "conversation", "model": "m", "messages": []}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 10**6,
        b"{}",
        json.dumps(WHOLE | {"extra": 1}).encode(),
        json.dumps(WHOLE | {"options": {"temperature": -1}}).encode(),
        json.dumps(WHOLE | {"options": {"temprature": 1}}).encode(),
        json.dumps(WHOLE | {"messages": [{"role": "system", "content": "x"}]}).encode(),
        json.dumps(WHOLE | {"messages": [{"role": "user", "content": "x"}]}).encode(),
        json.dumps(WHOLE | {"messages": [{"role": "user", "content": 1}]}).encode(),
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(content, conversation, tmp_path):
    path = tmp_path / "talk.json"
    path.write_bytes(content)
    conversation.answer("hi", Pieces())
    before = list(conversation.messages)
    with pytest.raises(UsageError, match="is no saved conversation"):
        obey(f"/load {path}", conversation)
    assert (conversation.messages, conversation.options) == (before, {})


def test_a_huge_file_is_not_read(conversation, tmp_path):
    path = tmp_path / "talk.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="bytes, possible are"):
        obey(f"/load {path}", conversation)


def test_control_characters_do_not_reach_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with scripted(answer="\x1b]0;x\x07\n") as engine:
        chat.ask_once(Conversation(engine), "hi")
    assert capsys.readouterr().out == "\\x1b]0;x\\x07\n\n"


def test_no_color_is_respected(monkeypatch, say, conversation):
    monkeypatch.setattr("sterna.cli.say.sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    out = say("hi", "/nope", "/help")
    assert not re.search(r"\x1b\[[\d;]*3[0-9]", out)  # no colour; bold and dim are none
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[31m" in say("/nope")


def test_a_dumb_terminal_gets_no_escapes(monkeypatch, say):
    monkeypatch.setattr("sterna.cli.say.sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in say("hi", "/nope")


def test_pieces_are_written_as_they_come(model, monkeypatch):
    written = []
    monkeypatch.setattr(PlainView, "text", lambda self, piece: written.append(piece))
    assert main(["chat", "--prompt", "hi"]) == 0
    pieces = [piece for piece in written if piece]
    assert "".join(pieces) == ANSWER
    assert all(len(piece) == 1 for piece in itertools.islice(pieces, 4))
