"""A model in this process that answers chat prompts: messages in, text out, and the engine between them.

Requests are answered in padded batches of prompts of similar lengths, of whatever is waiting. On a GPU, requests
without a seed go through continuous batching instead, and all of them through vLLM where it is installed.

A last message of the assistant is continued. Its text is appended to the template's own beginning of an
answer rather than rendered by the template, which may strip it, so it stands where the model would have
written it. Answers are text: their reader joins the beginning and its continuation, and tokenizes them together.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers.utils import logging

from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import opens_thoughts, without_opening
from edit_trl.models.chat.protocol import (
    ChatRequest,
    ChatResponse,
    MalformedResponse,
    NoAnswer,
    RawResponse,
    Sampling,
    TeacherUnusable,
)
from edit_trl.models.chat_templates import check_variables, render
from edit_trl.models.decoding import Batching, Decoding, check_batching, pack
from edit_trl.models.generation import Engine
from edit_trl.models.generation_with_vllm import VllmEngine, vllm_is_faster
from edit_trl.models.identity import model_hash
from edit_trl.models.loading import ModelSource
from edit_trl.models.scheduling import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.get_logger(__name__)

# Requests that arrive within so many seconds of the first go into one batch.
_GATHER = 0.02
# Several batches, so that there are prompts of similar lengths among the requests that wait.
_REQUESTS_AT_ONCE = 1024


class _Waiting(NamedTuple):
    """A request in the queue, its prompt's token ids, and the future that will hold its answer."""

    request: ChatRequest
    prompt: list[int]
    done: asyncio.Future[RawResponse]


class TransformersTeacher:
    """A `Teacher` whose model is loaded in this process by the first `check` or `attempt`.

    Args:
        model: A path or Hub id, of a model or of a PEFT adapter, which is merged into its base.
        batch_size: Responses per padded batch; see `edit_trl.models.decoding.pack` for None.
        batching: `auto` is vLLM if it is installed and there is a GPU, else continuous batching on a GPU for requests
            without a seed, else padded batches.
        dtype: Number format of the weights; where None, bfloat16 on a GPU and float32 elsewhere.
        chat_template_kwargs: Values of the chat template's variables.

    Attributes:
        batching: How it batches, which is not `auto` any more once the model is loaded.

    Raises:
        InputError: `batching` is unknown or not installed, or `batch_size` is below 1.
    """

    ends_thoughts = True
    requests_at_once = _REQUESTS_AT_ONCE

    def __init__(
        self,
        model: str,
        *,
        batch_size: int | None = None,
        batching: Batching = "auto",
        dtype: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        check_batching(batching, batch_size)
        self.model = model
        self._chat_template_kwargs = chat_template_kwargs
        self._batch_size, self._dtype = batch_size, dtype
        self.batching: Batching = batching
        self._engine: Engine | VllmEngine | None = None
        self._loading: asyncio.Task[None] | None = None
        self._waiting: list[_Waiting] = []
        self._pump: asyncio.Task[None] | None = None
        self._stream: Stream | None = None
        self._stream_sampling: Sampling | None = None
        self._in_stream = 0  # requests that the stream is answering
        self._idle = asyncio.Condition()
        self._make = partial(
            TransformersTeacher,
            model,
            batch_size=batch_size,
            batching=batching,
            dtype=dtype,
            chat_template_kwargs=chat_template_kwargs,
        )

    @cached_property
    def address(self) -> str:
        """The hash of the weights and values of the chat template, on which answers depend beside the model's name."""
        values = self._chat_template_kwargs
        return f"weights {model_hash(self.model)}" + (f" {json.dumps(values, sort_keys=True)}" if values else "")

    def makers(self) -> list[Callable[[], TransformersTeacher]]:
        """Return a single function that makes the same teacher in any number of other processes."""
        return [self._make]

    async def check(self) -> None:
        """Load the model.

        Raises:
            InputError: It cannot be loaded, or its chat template has no such variables, which is said before.
        """
        if self._loading is None:  # once, however many requests wait for it
            self._loading = asyncio.create_task(asyncio.to_thread(self._load))
        await self._loading

    async def attempt(self, request: ChatRequest) -> RawResponse:
        """Generate an answer; see `Teacher.attempt`."""
        await self.check()
        try:
            prompt, room = self._encode(request), self._loaded.positions
        except InputError as error:  # the chat template refuses the messages
            raise NoAnswer(str(error)) from error
        if room is not None and len(prompt) + request.sampling.max_tokens > room:
            raise NoAnswer(
                f"longer than the model's context: {len(prompt)} prompt tokens and "
                f"{request.sampling.max_tokens} more, of {room}"
            )
        if self.batching == "continuous" and request.seed is None:
            return await self._answer_in_stream(request, prompt)
        done: asyncio.Future[RawResponse] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request, prompt, done))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._answer_in_batches())
        return await done

    def read(self, raw: RawResponse) -> ChatResponse:
        """See `Teacher.read`."""
        try:
            body = json.loads(raw.body)
            return ChatResponse(
                body["text"], body["finish_reason"], self.model, body["prompt_tokens"], body["completion_tokens"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise MalformedResponse(f"not an answer of a local model ({error})") from error

    async def close(self) -> None:
        """Release the model."""
        await self._close_stream()
        if self._pump is not None:
            await asyncio.wait([self._pump])
        self._engine = self._loading = None

    @property
    def _loaded(self) -> Engine | VllmEngine:
        assert self._engine is not None  # `check` comes first
        return self._engine

    def _load(self) -> None:
        from peft import PeftModel

        dtype = self._dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
        source = ModelSource(self.model, dtype=dtype)
        if self._chat_template_kwargs:
            check_variables(source.load_tokenizer(), self._chat_template_kwargs)
        if self.batching == "vllm" or (self.batching == "auto" and vllm_is_faster()):
            self._engine, self.batching = VllmEngine(self.model, dtype=dtype), "vllm"
            tokenizer = self._engine.tokenizer
        else:
            model, tokenizer = source.load()
            self._engine = Engine(model.merge_and_unload() if isinstance(model, PeftModel) else model, tokenizer)
            self.batching = self._engine.resolved(self.batching)
        if tokenizer.chat_template is None:
            logger.warning(f"{self.model} has no chat template: prompts are sent as plain text")

    def _encode(self, request: ChatRequest) -> list[int]:
        messages = [{"role": role, "content": content} for role, content in request.messages]
        return prompt_ids(self._loaded.tokenizer, messages, self._chat_template_kwargs)

    async def _answer_in_batches(self) -> None:
        """Answer what is waiting, batch by batch; the requests of a batch share their sampling."""
        while self._waiting:
            await asyncio.sleep(_GATHER)
            batch = self._next_batch()
            started = time.monotonic()
            try:
                outputs = await asyncio.to_thread(self._generate, batch)
            except Exception as error:  # raised where an answer is awaited, which would else wait for ever
                if should_reduce_batch_size(error):  # the engine has done so
                    error = TeacherUnusable("out of memory with a single prompt; lower `max_tokens`, or set `dtype`")
                for _, _, done in batch:
                    if not done.cancelled():
                        done.set_exception(error)
                continue
            for (request, prompt, done), ids in zip(batch, outputs, strict=True):
                if not done.cancelled():
                    done.set_result(self._raw(request, prompt, ids, time.monotonic() - started))

    def _next_batch(self) -> list[_Waiting]:
        """Take a batch out of the requests that wait."""
        sampling = self._waiting[0].request.sampling
        batch = [waiting for waiting in self._waiting if waiting.request.sampling == sampling]
        if self.batching != "vllm":  # which makes batches by itself
            lengths = [len(waiting.prompt) for waiting in batch]
            first, *_ = pack(lengths, sampling.max_tokens, batch_size=self._batch_size)
            batch = [batch[index] for index in first]
        taken = set(map(id, batch))
        self._waiting = [waiting for waiting in self._waiting if id(waiting) not in taken]
        return batch

    def _generate(self, batch: Sequence[_Waiting]) -> list[list[int]]:
        sampling = batch[0].request.sampling
        return self._loaded.generate(
            [waiting.prompt for waiting in batch],
            _decoding(sampling),
            seeds=[_draw_seed(waiting.request) for waiting in batch],
            stop=sampling.stop,
        )

    async def _answer_in_stream(self, request: ChatRequest, prompt: list[int]) -> RawResponse:
        """Answer by continuous batching; a request of other sampling waits until the stream is empty."""
        async with self._idle:
            if self._stream_sampling != request.sampling:
                await self._idle.wait_for(lambda: not self._in_stream)
                if self._stream_sampling != request.sampling:
                    await self._close_stream()
                    assert isinstance(self._loaded, Engine)
                    self._stream = Stream(self._loaded, _decoding(request.sampling), request.sampling.stop)
                    self._stream_sampling = request.sampling
            stream = self._stream
            assert stream is not None  # whoever sets the sampling makes the stream
            self._in_stream += 1
        started = time.monotonic()
        try:
            ids = await stream.generate(prompt)
        except RuntimeError as error:
            raise TeacherUnusable(str(error)) from error
        finally:
            async with self._idle:
                self._in_stream -= 1
                self._idle.notify_all()
        return self._raw(request, prompt, ids, time.monotonic() - started)

    async def _close_stream(self) -> None:
        if self._stream is not None:
            await asyncio.to_thread(self._stream.close)
            self._stream = self._stream_sampling = None

    def _raw(self, request: ChatRequest, prompt: Sequence[int], ids: Sequence[int], latency: float) -> RawResponse:
        engine, tokenizer = self._loaded, self._loaded.tokenizer
        response, ended = engine.response_of(prompt, ids, _decoding(request.sampling))
        if not ended:  # by a stop string, after which there is padding
            response = [token for token in response if token != engine.pad_id]
        text = engine.text_of(prompt, response)
        if request.messages[-1][0] == "assistant":
            # Decoded with the prompt: a tokenizer may drop the space that the first word begins with.
            options: dict[str, Any] = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
            before = str(tokenizer.decode([*prompt], **options))
            text = str(tokenizer.decode([*prompt, *response], **options))[len(before) :].rstrip()
        body = {
            "text": text,
            "finish_reason": "stop" if ended else "length",
            "prompt_tokens": len(prompt),
            "completion_tokens": len(response) + ended,
        }
        return RawResponse(json.dumps(body, ensure_ascii=False), latency)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the token ids of a conversation, up to where the model writes.

    Args:
        tokenizer: Without a chat template, messages are joined as plain text.
        messages: `role` and `content` of each; the model continues a last one of the assistant.
        chat_template_kwargs: Values of the chat template's variables.

    Raises:
        InputError: The chat template refuses the messages, or has no such variable.
    """
    *earlier, last = messages
    beginning = last["content"] if last["role"] == "assistant" else ""
    complete = earlier if last["role"] == "assistant" else list(messages)
    if tokenizer.chat_template is None:
        text = "\n\n".join(message["content"] for message in complete) + "\n"
        return tokenizer(text + beginning)["input_ids"]
    text = render(tokenizer, complete, add_generation_prompt=True, chat_template_kwargs=chat_template_kwargs)
    if opens_thoughts(text):
        beginning = without_opening(beginning)
    return tokenizer(text + beginning, add_special_tokens=False)["input_ids"]


def _decoding(sampling: Sampling) -> Decoding:
    return Decoding(
        sampling.max_tokens, sampling.temperature, sampling.top_p, max_thinking_tokens=sampling.max_thinking_tokens
    )


def _draw_seed(request: ChatRequest) -> int:
    """Return the seed of a request's own random numbers, which do not depend on its batch."""
    name = f"{request.seed} {request.sample} {request.messages}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
