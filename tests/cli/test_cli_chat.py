"""`sterna chat`: one-shot through --prompt and pipes, talking turn by turn, commands, stopping."""

import itertools

import pytest
from scripted_model import ANSWER, scripted

from sterna.base.errors import RequestError, UsageError
from sterna.cli import chat
from sterna.cli.commands import COMMANDS, obey
from sterna.cli.conversation import Conversation
from sterna.cli.main import main


@pytest.fixture
def conversation():
    with scripted() as engine:
        yield Conversation(engine)


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
        monkeypatch.setattr("sterna.cli.terminal.Terminal", lambda: Lines(*lines))
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
        conversation.answer(text, lambda piece: None)
        sizes.append(conversation.turns[-1].usage.prompt_tokens)
    assert sizes[0] == len("user: one\nassistant:")
    assert sizes[1] == len(f"user: one\nassistant: {ANSWER}\nuser: two\nassistant:")


def test_the_system_prompt_comes_first_and_outlives_a_reset(conversation):
    obey("/set system=be brief", conversation)
    conversation.answer("one", lambda piece: None)
    conversation.reset()
    conversation.answer("two", lambda piece: None)
    expected = len("system: be brief\nuser: two\nassistant:")
    assert conversation.turns[-1].usage.prompt_tokens == expected


def test_ctrl_c_stops_the_answer_and_keeps_what_came(conversation):
    pieces = []

    def write(piece):
        pieces.append(piece)
        if "".join(pieces) == "ok":
            raise KeyboardInterrupt

    turn = conversation.answer("hi", write)
    assert turn.stopped
    assert conversation.messages[-1] == {"role": "assistant", "content": "ok"}
    assert conversation.answer("again", lambda piece: None).text == ANSWER


def test_ctrl_c_before_the_first_token_takes_the_question_back():
    def interrupt(piece):
        raise KeyboardInterrupt

    with scripted() as engine:
        conversation = Conversation(engine)
        turn = conversation.answer("hi", interrupt)  # the first piece is empty: the role
        assert turn.stopped
        assert conversation.messages == []


def test_a_stopped_pipe_ends_the_program(model, monkeypatch, capsys):
    def interrupt(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "_write", interrupt)
    assert main(["chat", "--prompt", "hi"]) == 130


def test_talking(say):
    out = say("hi", "", "/exit", "never reached")
    assert out.count(ANSWER) == 1
    assert "tokens/s" in out
    assert "10 tokens" in out  # nine characters and the end


def test_a_mistake_ends_neither_the_chat_nor_the_conversation(say, conversation):
    out = say("hi", "/sat", "/set top_k=x", "x" * 300, "again")
    assert "there is no command /sat; did you mean /stats?" in out
    assert "top_k is 'x', possible is an integer" in out
    assert "the context window is 256 tokens" in out
    assert "/reset starts a new conversation" in out
    assert out.count(ANSWER) == 2
    assert len(conversation.messages) == 4


def test_a_full_window_is_said_below_the_answer(say):
    with scripted(window=24) as engine:
        out = say("hi", on=Conversation(engine))
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
    assert "top_k=4" in obey("/set", conversation)


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
    ],
)
def test_wrong_commands_change_nothing(text, error, sentence, conversation):
    with pytest.raises(error, match=sentence.replace("(", r"\(")):
        obey(text, conversation)
    assert conversation.options == {}


def test_stats_count_answers_tokens_and_the_window(conversation):
    assert "answers: 0" in obey("/stats", conversation)
    conversation.answer("hi", lambda piece: None)
    text = obey("/stats", conversation)
    assert "answers: 1 (0 stopped), tokens written: 10" in text
    assert f"context: {len('user: hi assistant:') + 10} of 256 tokens" in text
    conversation.reset()
    assert "context: 0 of 256 tokens" in obey("/stats", conversation)


def test_control_characters_do_not_reach_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with scripted(answer="\x1b]0;x\x07\n") as engine:
        Conversation(engine).answer("hi", chat._write)
    assert capsys.readouterr().out == "\\x1b]0;x\\x07\n"


def test_no_color_is_respected(monkeypatch, say, conversation):
    monkeypatch.setattr("sterna.cli.say.sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in say("hi", "/nope")
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[2m" in say("hi")


def test_a_slow_model_streams(model, monkeypatch):
    written = []
    monkeypatch.setattr(chat, "_write", written.append)
    assert main(["chat", "--prompt", "hi"]) == 0
    pieces = [piece for piece in written if piece]
    assert "".join(pieces) == ANSWER
    assert all(len(piece) == 1 for piece in itertools.islice(pieces, 4))
