"""`edit-trl chat`: try a model in the terminal (L4).

What a model writes is text: control characters in it, which a terminal would act on, are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError

COMMANDS = "/clear begins anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def main(argv: list[str] | None = None) -> int:
    """Runs `edit-trl chat`.

    Raises:
        InputError: No model, or options out of range.
    """
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    problems = []
    if options.temperature < 0:
        problems.append(f"--temperature must be 0 or more, got {options.temperature}")
    if options.max_new_tokens < 1:
        problems.append(f"--max_new_tokens must be 1 or more, got {options.max_new_tokens}")
    if problems:
        raise InputError(problems)
    model = _model_folder(options.run)

    from edit_trl.models.loading import load_student

    student = load_student(
        model, dtype=options.dtype, device=options.device, trust_remote_code=options.trust_remote_code
    )
    chat = Chat(*student, options.system, options.temperature, options.max_new_tokens)
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
    parser = argparse.ArgumentParser(
        prog="edit-trl chat",
        description=f"Try a model in the terminal; {COMMANDS}. Lines that are piped in are a turn each.",
        allow_abbrev=False,
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
    add(
        "--max_new_tokens",
        type=int,
        default=512,
        metavar="N",
        help="most tokens an answer (%(default)s)",
    )
    add("--dtype", metavar="NAME", help="of the weights, as bfloat16 (default: as they are saved)")
    add("--device", help="as cpu or cuda:0 (default: the GPU where there is one)")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    return parser


def _model_folder(run: str) -> str:
    """The folder with the model: of a run with stages, the last finished one's."""
    from edit_trl.hub.push import CONFIGS, find_source

    path = Path(run).expanduser()
    if not path.is_dir() or any((path / config).is_file() for config in CONFIGS):
        return run
    source = find_source(run)
    if source.kind != "model":
        raise InputError(f"{run} is no model but dual CoTs")
    return str(source.path)


def _lines(is_terminal: bool) -> Iterator[str]:
    """What is typed or piped in, line by line."""
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
        model: In eval mode.
        tokenizer: Its tokenizer; without a chat template every turn is a prompt of its own.
        system: A system message.
        temperature: 0 for the likeliest token.
        max_new_tokens: Most tokens an answer.
    """

    def __init__(
        self, model: Any, tokenizer: Any, system: str | None, temperature: float, max_new_tokens: int
    ):
        if system and tokenizer.chat_template is None:
            raise InputError("--system needs a model with a chat template; this one has none")
        self._model, self._tokenizer, self._system = model, tokenizer, system
        self._temperature, self._max_new_tokens = temperature, max_new_tokens
        self.clear()

    def clear(self) -> None:
        """Forget what was said."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def ask(self, text: str, show: Callable[[str], None]) -> None:
        """Say something; the answer is shown piece by piece and remembered, as far as it came.

        Raises:
            InputError: The conversation does not fit into the model's context.
            KeyboardInterrupt: The answer was stopped.
        """
        self.messages.append({"role": "user", "content": text})
        inputs = self._encode()
        room = getattr(self._model.config, "max_position_embeddings", None)
        length = inputs["input_ids"].shape[1]
        if room and length + self._max_new_tokens > room:
            self.messages.pop()
            raise InputError(
                f"the conversation of {length} tokens and {self._max_new_tokens} new ones do not fit into "
                f"the model's {room}; /clear begins anew"
            )
        pieces: list[str] = []

        def piece(shown: str) -> None:
            pieces.append(shown)
            show(shown)

        try:
            self._generate(inputs, piece)
        finally:
            self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def _encode(self) -> Any:
        if self._tokenizer.chat_template is None:
            inputs = self._tokenizer(self.messages[-1]["content"] + "\n", return_tensors="pt")
        else:
            inputs = self._tokenizer.apply_chat_template(
                self.messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        return inputs.to(self._model.device)

    def _generate(self, inputs: Any, show: Callable[[str], None]) -> None:
        import torch
        from transformers import TextStreamer

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                show(text)

        drawn = {"do_sample": True, "temperature": self._temperature, "top_p": 1.0, "top_k": 0}
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with torch.inference_mode():
            self._model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=self._max_new_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                streamer=Streamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True),
                **(drawn if self._temperature else greedy),
            )


def _answer(chat: Chat, line: str) -> None:
    from edit_trl.common.terminal import visible

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
