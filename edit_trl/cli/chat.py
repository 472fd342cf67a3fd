"""`edit-trl chat`: try a model in the terminal.

Control characters in an answer, which a terminal would act on, are shown as visible characters.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.cli.parser import Parser
from edit_trl.common.errors import InputError
from edit_trl.common.terminal import visible
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
    decoding = Decoding(options.max_new_tokens, options.temperature)
    model = model_folder(options.run)

    from edit_trl.models.loading import ModelSource

    source = ModelSource(model, options.dtype, options.device, options.trust_remote_code)
    chat = Chat(*source.load(), decoding, options.system)
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

    Attributes:
        messages: The conversation so far, as `role` and `content`.

    Raises:
        InputError: There is a system message and no chat template that takes it, or no EOS token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        system: str | None = None,
    ):
        from edit_trl.models.chat_templates import render
        from edit_trl.models.generation import Engine

        if system and tokenizer.chat_template is None:
            raise InputError("--system needs a model with a chat template; this one has none")
        self._engine, self._decoding, self._system = Engine(model, tokenizer), decoding, system
        self.clear()
        if tokenizer.chat_template is not None:  # before a first question is typed
            render(tokenizer, [*self.messages, {"role": "user", "content": "Hello."}], add_generation_prompt=True)

    def clear(self) -> None:
        """Forget the conversation, except for the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def ask(self, text: str, show: Callable[[str], None]) -> None:
        """Ask something; the answer is remembered as far as it was shown.

        Args:
            text: The user's message.
            show: Receives the answer piece by piece.

        Raises:
            InputError: The conversation does not fit into the model's context.
            KeyboardInterrupt: The answer was stopped.
        """
        from transformers import TextStreamer

        from edit_trl.models.chat.local import prompt_ids

        self.messages.append({"role": "user", "content": text})
        tokenizer, room = self._engine.tokenizer, self._engine.positions
        new = self._decoding.max_new_tokens
        try:
            prompt = prompt_ids(tokenizer, self.messages if tokenizer.chat_template else self.messages[-1:])
            if room and len(prompt) + new > room:
                raise InputError(
                    f"the conversation of {len(prompt)} tokens and {new} new ones do not fit into "
                    f"the model's {room}; /clear begins anew"
                )
        except InputError:
            self.messages.pop()
            raise
        pieces: list[str] = []

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                pieces.append(text)
                show(text)

        streamer = Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        try:
            self._engine.generate([prompt], self._decoding, seed=random.getrandbits(32), streamer=streamer)
        finally:
            self.messages.append({"role": "assistant", "content": "".join(pieces)})


def _answer(chat: Chat, line: str) -> None:
    def show(text: str) -> None:
        sys.stdout.write(visible(text))
        sys.stdout.flush()

    try:
        chat.ask(line, show)
        print()
    except InputError as error:
        print(error)
    except KeyboardInterrupt:
        print(" (stopped)")
