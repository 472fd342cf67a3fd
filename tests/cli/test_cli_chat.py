"""`edit-trl chat`, through a pipe and through a terminal, with a model that says what it was taught."""

import io
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import byte_level_tokenizer, tiny_llama
from thinking_models import thinking_tokenizer

from edit_trl.cli.chat import Chat
from edit_trl.cli.main import main
from edit_trl.common.errors import InputError
from edit_trl.models.decoding import Decoding

BELL = "\x1b]0;owned\x07\x1b[2J\x9b31m"


@pytest.fixture(scope="module")
def parrot(tmp_path_factory):
    """A model that repeats its last token for ever; on disk."""
    folder = tmp_path_factory.mktemp("parrot")
    model = tiny_llama()
    with torch.no_grad():
        for layer in model.model.layers:  # nothing but the embedding is left
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    model.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def no_template(parrot, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    tiny_llama().save_pretrained(folder)
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


def command(model, *options) -> list[str]:
    return [sys.executable, "-m", "edit_trl.cli.main", "chat", str(model), "--device", "cpu", *options]


# Through a pipe


def test_a_line_is_a_turn(parrot):
    lines = "Hello\n\n/clear\n/nonsense\nHello\n/exit\nnot reached\n"
    options = {"input": lines, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(command(parrot, "--max_new_tokens", "4", "--system", "Be brief."), **options)
    assert done.returncode == 0, done.stderr
    first, complaint, second = _answers(done.stdout)
    assert first == second  # after /clear the same question is the same conversation
    assert "no command /nonsense: /clear begins anew" in complaint
    assert "not reached" not in done.stdout
    assert ">" not in first


def _answers(printed: str) -> tuple[str, str, str]:
    before, complaint, after = re.split(r"^(no command .*)\n", printed, flags=re.MULTILINE)
    return before, complaint, after


# Through a terminal


class Terminal:
    """A process at a pseudo-terminal."""

    def __init__(self, argv):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, os.environ | {"TERM": "dumb"})
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come, but: {self.seen!r}"
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.master, 4096).decode(errors="replace")
                except OSError as error:  # the other end is closed
                    raise AssertionError(f"{text!r} did not come, but: {self.seen!r}") from error

    def send(self, data: bytes) -> None:
        self.seen = ""
        os.write(self.master, data)

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C until it is noticed: one between the prompt and the wait for a key would be lost."""
        for seconds in (5, 10, 20):
            self.send(b"\x03")
            try:
                self.wait_for(text, seconds)
            except AssertionError:
                continue
            return
        self.send(b"\x03")
        self.wait_for(text)

    def leave(self) -> int:
        """Press Ctrl-D until the command ends, for one before the wait for a key would be lost; its exit code."""
        for _ in range(12):
            self.send(b"\x04")
            while select.select([self.master], [], [], 5)[0]:  # the command waits for its output to be read
                try:
                    has_ended = not os.read(self.master, 4096)
                except OSError:  # the command has closed the terminal
                    has_ended = True
                if has_ended:
                    return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        raise AssertionError("Ctrl-D did not end the conversation")


def test_at_a_terminal(parrot):
    terminal = Terminal(command(parrot, "--max_new_tokens", "400"))
    try:
        terminal.wait_for("Ctrl-C stops an answer")
        terminal.wait_for("> ")
        terminal.interrupt_until("Ctrl-D leaves")  # at the prompt: nothing to stop
        terminal.wait_for("> ")
        terminal.send(b"Hello\r")
        terminal.wait_for("Hello\r\n")
        time.sleep(0.5)
        terminal.interrupt_until("> ")  # stopped, or at the end by itself: the conversation goes on
        terminal.send(b"/clear\r")
        terminal.wait_for("> ")
        assert terminal.leave() == 0
    except BaseException:
        os.kill(terminal.pid, signal.SIGKILL)
        raise


# In this process


def stopped(tokenizer, text):
    """A model whose answer is stopped by Ctrl-C after a piece of text."""

    def generate(streamer, input_ids, **options):
        streamer.put(input_ids)
        for token in tokenizer(text).input_ids:
            streamer.put(torch.tensor([token]))
        streamer.put(torch.tensor(tokenizer("\n").input_ids))
        raise KeyboardInterrupt

    model = tiny_llama()
    model.generate = generate
    return model


def test_a_stopped_answer_is_remembered_as_far_as_it_came():
    tokenizer, shown = byte_level_tokenizer(), []
    chat = Chat(stopped(tokenizer, "It is 3."), tokenizer, Decoding(8))
    with pytest.raises(KeyboardInterrupt):
        chat.ask("How many?", shown.append)
    assert "".join(shown).startswith("It is 3.")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert chat.messages[1]["content"] == "".join(shown)


def test_control_characters_do_not_reach_the_terminal(capsys):
    from edit_trl.cli.chat import _answer

    tokenizer = byte_level_tokenizer()
    _answer(Chat(stopped(tokenizer, f"a{BELL}b\tc"), tokenizer, Decoding(8)), "Say it.")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert "\x9b" not in printed
    assert printed.startswith("a")
    assert "b\tc" in printed
    assert printed.endswith("(stopped)\n")


def test_a_conversation_that_does_not_fit():
    chat = Chat(tiny_llama().eval(), byte_level_tokenizer(), Decoding(200))
    with pytest.raises(InputError, match=r"do not fit into the model's 512; /clear begins anew"):
        chat.ask("word " * 400, lambda text: None)
    assert chat.messages == []


def test_a_model_without_a_chat_template(no_template, capsys, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert main(["chat", str(no_template), "--max_new_tokens", "3", "--temperature", "0.7", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.endswith("\n")
    assert main(["chat", str(no_template), "--system", "Be brief."]) == 2
    assert "--system needs a model with a chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "`temperature` cannot be negative, got -1.0"),
        (["--max_new_tokens", "0"], "`max_new_tokens` must be at least 1, got 0"),
        (["--device", "tpu"], "`device: tpu` does not exist"),
    ],
)
def test_bad_options(parrot, capsys, options, message):
    assert main(["chat", str(parrot), *options]) == 2
    assert message in capsys.readouterr().err


def test_no_model(tmp_path, capsys):
    assert main(["chat", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["chat", str(tmp_path)]) == 2
    assert "is no model, run or dataset" in capsys.readouterr().err


def test_messages_that_the_template_refuses_are_said_and_forgotten(tmp_path, capsys):
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{% if 'rude' in m['content'] %}{{ raise_exception('Mind your words') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    tiny_llama().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert main(["chat", str(tmp_path), "--device", "cpu", "--system", "Be brief."]) == 2
    assert "refuses the messages (system, user): System role not supported" in capsys.readouterr().err
    chat = Chat(tiny_llama(), tokenizer, Decoding(2))
    with pytest.raises(InputError, match="Mind your words"):
        chat.ask("Something rude", lambda text: None)
    assert chat.messages == []
    chat.ask("Something kind", lambda text: None)
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]


# Models that think


THOUGHTS = "<think>\n2 + 2 = 4.\n</think>\n\n"


@pytest.mark.parametrize(
    ("markers", "said"),
    [
        ("think", f"{THOUGHTS}It is 4."),
        (
            "gpt_oss",
            "<|channel|>analysis<|message|>2 + 2 = 4.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.",
        ),
    ],
)
def test_thoughts_are_shown_and_not_remembered(markers, said):
    tokenizer, shown = thinking_tokenizer(markers), []
    chat = Chat(stopped(tokenizer, said), tokenizer, Decoding(8))
    with pytest.raises(KeyboardInterrupt):
        chat.ask("How many?", shown.append)
    assert "".join(shown).strip() == f"{THOUGHTS}It is 4."
    assert len(shown) > 1
    assert chat.messages[1] == {"role": "assistant", "content": "It is 4."}


def test_a_template_is_given_its_values_and_may_open_the_thoughts(capsys):
    from edit_trl.cli.chat import _answer

    tokenizer = thinking_tokenizer("think")
    tokenizer.chat_template += "{% if add_generation_prompt and enable_thinking %}<think>\n{% endif %}"
    prompts = []

    def generate(streamer, input_ids, **options):
        prompts.append(tokenizer.decode(input_ids[0]))
        streamer.put(input_ids)
        streamer.put(torch.tensor(tokenizer("It is 4.").input_ids))
        streamer.end()
        return input_ids

    model = tiny_llama(len(tokenizer))
    model.generate = generate
    for values, printed in (
        (None, "It is 4.\n"),
        ({"enable_thinking": True}, "<think>\nIt is 4. (the thoughts"),
    ):
        chat = Chat(model, tokenizer, Decoding(8), chat_template_kwargs=values)
        _answer(chat, "How many?")
        assert capsys.readouterr().out.startswith(printed)
        assert chat.messages[1]["content"] == ("It is 4." if values is None else "")
    assert [prompt.endswith("<think>\n") for prompt in prompts] == [False, True]


@pytest.mark.parametrize(("value", "last"), [("true", "y"), ("false", "n")])
def test_values_of_the_command_line_have_their_types(parrot, tmp_path, capsys, monkeypatch, value, last):
    shutil.copytree(parrot, tmp_path / "model")
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template += "{% if enable_thinking is true %}y{% elif enable_thinking is false %}n{% endif %}"
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    words = ["chat", str(tmp_path / "model"), "--device", "cpu", "--max_new_tokens", "3"]
    assert main([*words, "--chat_template_kwargs", f'{{"enable_thinking": {value}}}']) == 0
    assert capsys.readouterr().out.strip() == 3 * last


def test_values_that_a_template_does_not_have(parrot, no_template, capsys):
    assert main(["chat", str(parrot), "--chat_template_kwargs", '{"enable_thinking": false}']) == 2
    assert "has no variable 'enable_thinking'" in capsys.readouterr().err
    assert main(["chat", str(parrot), "--chat_template_kwargs", "off"]) == 2
    assert "--chat_template_kwargs must be a mapping" in capsys.readouterr().err
    assert main(["chat", str(parrot), "--max_thinking_tokens", "512"]) == 2
    assert "`max_thinking_tokens: 512` has no effect" in capsys.readouterr().err
