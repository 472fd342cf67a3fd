"""`edit-trl chat`: try a model in the terminal.

Control characters in an answer, which a terminal would act on, are shown as visible characters. Thoughts are dimmed,
and are not part of the conversation that the model is given next.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.cli.parser import Parser, read_values
from edit_trl.common.errors import InputError
from edit_trl.common.terminal import visible
from edit_trl.common.thoughts import answer_part, split_thoughts, thoughts_part
from edit_trl.models.decoding import Decoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMMANDS = "/clear begins anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def main(argv: list[str] | None = None) -> int:
    """Run `edit-trl chat`.

    Raises:
        InputError: There is no such model, or an option is out of range.
    """
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    decoding = Decoding(options.max_new_tokens, options.temperature, max_thinking_tokens=options.max_thinking_tokens)
    values = options.chat_template_kwargs and read_values(options.chat_template_kwargs, "--chat_template_kwargs")
    model = model_folder(options.run)

    from edit_trl.models.chat_templates import check_variables
    from edit_trl.models.loading import ModelSource

    source = ModelSource(model, options.dtype, options.device, options.trust_remote_code)
    if values:  # before the weights are loaded
        check_variables(source.load_tokenizer(), values)
    chat = Chat(*source.load(), decoding, options.system, values)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(f"{model}: {COMMANDS}")
    for line in _lines(is_terminal):
        if line in ("/exit", "/quit"):
            break
        if line == "/clear":
            chat.clear()
        elif line.startswith("/"):
            print(f"no command {line.split()[0]}: {COMMANDS}")
        elif line:
            _answer(chat, line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="edit-trl chat",
        description=f"Try a model in the terminal; {COMMANDS}. Each line that is piped in is a turn.",
    )
    add = parser.add_argument
    add(
        "run",
        metavar="RUN",
        help="the folder of a training run (its last finished stage is taken), or the folder or Hub id of a "
        "model or an adapter",
    )
    add("--system", metavar="TEXT", help="a system message")
    add("--temperature", type=float, default=0.0, help="0 for the likeliest token (default: %(default)s)")
    add("--max_new_tokens", type=int, default=512, metavar="N", help="most tokens per answer (default: %(default)s)")
    add("--max_thinking_tokens", type=int, metavar="N", help="most tokens of thoughts per answer")
    add(
        "--chat_template_kwargs",
        metavar="JSON",
        help="values of the chat template's variables, such as '{\"enable_thinking\": false}'",
    )
    add("--dtype", metavar="NAME", help="dtype of the weights, as bfloat16 (default: as they are saved)")
    add("--device", help="such as cpu or cuda:0 (default: the GPU if there is one)")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    return parser


def model_folder(run: str) -> str:
    """Return the folder of a model; for a training run, that of its last finished stage.

    Args:
        run: The folder of a run, or the folder or Hub id of a model or an adapter.

    Raises:
        InputError: The folder holds no model.
    """
    from edit_trl.hub.push import CONFIGS, find_source

    if not run.strip():
        raise InputError("RUN is empty; name the folder of a training run or a model, or a model's Hub id")
    path = Path(run).expanduser()
    if not path.is_dir() or any((path / config).is_file() for config in CONFIGS):
        return run
    source = find_source(run)
    if source.kind != "model":
        raise InputError(f"{run} is no model but dual CoTs")
    return str(source.path)


def _lines(is_terminal: bool) -> Iterator[str]:
    """Yield the lines that are typed or piped in."""
    if not is_terminal:
        yield from (line.strip() for line in sys.stdin)
        return
    import readline  # noqa: F401 (gives `input` editing and a history)

    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n{COMMANDS}")


class Chat:
    """A conversation with a model.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer; without a chat template, every turn is a prompt of its own.
        decoding: How answers are drawn.
        system: A system message.
        chat_template_kwargs: Values of the chat template's variables.

    Attributes:
        messages: The conversation so far, as `role` and `content`; without the thoughts of the model.

    Raises:
        InputError: There is a system message and no chat template that takes it, the template has no such variable,
            or there is no EOS token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        system: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        from edit_trl.models.chat_templates import render
        from edit_trl.models.generation import Engine

        for name, value in (("--system", system), ("--chat_template_kwargs", chat_template_kwargs)):
            if value and tokenizer.chat_template is None:
                raise InputError(f"{name} needs a model with a chat template; this one has none")
        self._engine, self._decoding, self._system = Engine(model, tokenizer), decoding, system
        self._template_values = chat_template_kwargs
        self.clear()
        if tokenizer.chat_template is not None:  # before a first question is typed
            hello = [*self.messages, {"role": "user", "content": "Hello."}]
            render(tokenizer, hello, add_generation_prompt=True, chat_template_kwargs=chat_template_kwargs)

    def clear(self) -> None:
        """Forget the conversation, except for the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def ask(self, text: str, show: Callable[[str], None]) -> None:
        """Ask something; the answer is remembered as far as it was shown, without its thoughts.

        Args:
            text: The user's message.
            show: Receives the response piece by piece, its thoughts in the form of `edit_trl.common.thoughts`.

        Raises:
            InputError: The conversation does not fit into the model's context.
            KeyboardInterrupt: The answer was stopped.
        """
        from edit_trl.models.chat.local import prompt_ids

        self.messages.append({"role": "user", "content": text})
        tokenizer, room = self._engine.tokenizer, self._engine.positions
        new = self._decoding.max_new_tokens
        try:
            asked = self.messages if tokenizer.chat_template else self.messages[-1:]
            prompt = prompt_ids(tokenizer, asked, self._template_values)
            if room and len(prompt) + new > room:
                raise InputError(
                    f"the conversation of {len(prompt)} tokens and {new} new ones do not fit into "
                    f"the model's {room}; /clear begins anew"
                )
        except InputError:
            self.messages.pop()
            raise
        streamer = _streamer(tokenizer, prompt, show)
        try:
            self._engine.generate([prompt], self._decoding, seed=random.getrandbits(32), streamer=streamer)
        finally:
            answer = split_thoughts(streamer.shown).answer if thoughts_part(streamer.shown) else streamer.shown
            self.messages.append({"role": "assistant", "content": answer or ""})


def _streamer(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], show: Callable[[str], None]) -> Any:
    """Return a streamer that shows a response as it grows, and has what it has `shown`."""
    from transformers import TextStreamer

    from edit_trl.models.responses import opened_by, text_with_thoughts

    class Streamer(TextStreamer):
        raw, shown = opened_by(tokenizer, prompt), ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.raw += text
            text = text_with_thoughts(tokenizer, self.raw)
            new = text[len(self.shown) :] if text.startswith(self.shown) else f"\n{text}"
            self.shown = text
            show(new)

    return Streamer(tokenizer, skip_prompt=True)


def _answer(chat: Chat, line: str) -> None:
    shown = ""

    def show(text: str) -> None:
        nonlocal shown
        shown += text
        part = answer_part(shown)
        thoughts = max(0, len(text) - (0 if part is None else len(shown) - part[0]))
        sys.stdout.write(_dim(visible(text[:thoughts])) + visible(text[thoughts:]))
        sys.stdout.flush()

    try:
        chat.ask(line, show)
        print(" (the thoughts did not end)" if answer_part(shown) is None else "")
    except InputError as error:
        print(error)
    except KeyboardInterrupt:
        print(" (stopped)")


def _dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[22m" if text and sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else text
