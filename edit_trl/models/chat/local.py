"""A teacher or student on this machine, for those without an endpoint (L3).

On a GPU through transformers' continuous batching; on a CPU, where that was eight times slower than padded
batches (SmolLM2-135M, 8 prompts), through padded batches of whatever is waiting. Requests with a seed always
go through padded batches, where each draws from a stream of its own.

A last message of the assistant is gone on with. Its text is put after the template's own beginning of an
answer rather than rendered by the template, which may strip it, and so stands where the model would have
written it. What is kept is text: prefix and continuation are joined as text, and tokenized together by
whoever reads them.

Read in transformers 5.23: `init_continuous_batching`, `ContinuousBatchingManager.add_request` and
`register_result_handler`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TopPLogitsWarper,
)
from transformers.utils import logging

from edit_trl.common.errors import InputError
from edit_trl.models.chat.protocol import (
    ChatRequest,
    ChatResponse,
    MalformedResponse,
    NoAnswer,
    RawResponse,
    Sampling,
    TeacherUnusable,
)
from edit_trl.models.identity import _fingerprint
from edit_trl.models.loading import put_on, refuse_missing_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.get_logger(__name__)

# Requests that come within so many seconds of the first go into one batch.
_GATHER = 0.02

# While it loads a model, transformers replaces `PreTrainedModel.tie_weights` for the whole process
# (`init.no_tie_weights`, read in 5.24): of two at once, a tied head would stay as it was made.
_ONE_LOADS = threading.Lock()


class TransformersTeacher:
    """A model that is loaded here.

    Args:
        model: A path or Hub id, of a model or of a PEFT adapter.
        batch_size: Prompts a padded batch.
        continuous: Whether to use continuous batching; on a GPU where None.
    """

    def __init__(self, model: str, *, batch_size: int = 16, continuous: bool | None = None):
        self.model = model
        self.address = _fingerprint(Path(model))
        self._batch_size = batch_size
        self._continuous = torch.cuda.is_available() if continuous is None else continuous
        self._loaded: PreTrainedModel | None = None
        self._loading: asyncio.Task[None] | None = None
        self._waiting: list[tuple[ChatRequest, list[int], asyncio.Future[RawResponse]]] = []
        self._pump: asyncio.Task[None] | None = None
        # One at a time: a manager takes most of the memory that is left.
        self._manager: Any = None
        self._manager_sampling: Sampling | None = None
        self._streams = 0
        self._idle = asyncio.Condition()
        self._make = partial(TransformersTeacher, model, batch_size=batch_size, continuous=continuous)

    def makers(self) -> list[Callable[[], TransformersTeacher]]:
        """How the same teacher is made in other processes: one for each of them."""
        return [self._make]

    async def check(self) -> None:
        """Load the model.

        Raises:
            InputError: There is none of this name.
        """
        if self._loading is None:  # once, however many requests wait for it
            self._loading = asyncio.create_task(asyncio.to_thread(self._load))
        await self._loading

    async def attempt(self, request: ChatRequest) -> RawResponse:
        """Generate; see `Teacher.attempt`."""
        await self.check()
        ids = self._encode(request)
        room = getattr(self._loaded.config.get_text_config(), "max_position_embeddings", None)
        if room is not None and len(ids) + request.sampling.max_tokens > room:
            raise NoAnswer(
                f"longer than the model's context: {len(ids)} prompt tokens and "
                f"{request.sampling.max_tokens} more, of {room}"
            )
        if self._continuous and request.seed is None:
            return await self._in_stream(request, ids)
        done: asyncio.Future[RawResponse] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, ids, done))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._in_batches())
        return await done

    def read(self, raw: RawResponse) -> ChatResponse:
        """See `Teacher.read`."""
        try:
            body = json.loads(raw.body)
            return ChatResponse(
                body["text"],
                body["finish_reason"],
                self.model,
                body["prompt_tokens"],
                body["completion_tokens"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise MalformedResponse(f"not an answer of a local model ({error})") from error

    async def close(self) -> None:
        """Let go of the model."""
        await self._stop_manager()
        if self._pump is not None:
            await asyncio.wait([self._pump])
        self._loaded = self._loading = None

    def _load(self) -> None:
        from peft import PeftConfig

        cuda = torch.cuda.is_available()
        refuse_missing_folder(self.model)
        adapter = (Path(self.model) / "adapter_config.json").is_file()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.model, padding_side="left")
            base = PeftConfig.from_pretrained(self.model).base_model_name_or_path if adapter else self.model
            with _ONE_LOADS:
                loaded = AutoModelForCausalLM.from_pretrained(
                    base, dtype=torch.bfloat16 if cuda else torch.float32, use_safetensors=True
                )
            if adapter:
                loaded = put_on(loaded, self.model).merge_and_unload()
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"no model could be loaded from {self.model!r}: {error}") from error
        self._loaded = loaded.to("cuda" if cuda else "cpu").eval()
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        eos = self._loaded.generation_config.eos_token_id
        eos = self._tokenizer.eos_token_id if eos is None else eos
        self._eos = eos if isinstance(eos, list) else [eos]
        if self._tokenizer.chat_template is None:
            logger.warning(f"{self.model} has no chat template: prompts are sent as plain text")

    def _encode(self, request: ChatRequest) -> list[int]:
        *asked, (role, begun) = request.messages
        if role != "assistant":
            asked, begun = request.messages, ""
        if self._tokenizer.chat_template is None:
            text = "\n\n".join(content for _, content in asked) + "\n"
            return self._tokenizer(text + begun)["input_ids"]
        messages = [{"role": role, "content": content} for role, content in asked]
        text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self._tokenizer(text + begun, add_special_tokens=False)["input_ids"]

    def _settings(self, sampling: Sampling, seeded: bool = False) -> GenerationConfig:
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            eos_token_id=self._eos,
            pad_token_id=self._tokenizer.pad_token_id,
            stop_strings=list(sampling.stop) or None,
            **(drawn if sampling.temperature and not seeded else {"do_sample": False}),
        )

    async def _in_batches(self) -> None:
        """Serve what is waiting, a batch of equal settings after another."""
        while self._waiting:
            await asyncio.sleep(_GATHER)
            kind = _kind(self._waiting[0][0])
            batch = [entry for entry in self._waiting if _kind(entry[0]) == kind][: self._batch_size]
            self._waiting = [entry for entry in self._waiting if entry not in batch]
            started = time.monotonic()
            try:
                outputs = await asyncio.to_thread(self._generate, batch)
            except torch.OutOfMemoryError:
                error = TeacherUnusable(f"out of memory with {len(batch)} prompts; lower `batch_size`")
                for _, _, done in batch:
                    done.set_exception(error)
                continue
            for (request, ids, done), new in zip(batch, outputs, strict=True):
                if not done.cancelled():
                    done.set_result(self._raw(request, ids, new, time.monotonic() - started))

    @torch.inference_mode()
    def _generate(self, batch: Sequence[tuple[ChatRequest, list[int], Any]]) -> list[list[int]]:
        requests, prompts, _ = zip(*batch, strict=True)
        inputs = self._tokenizer.pad({"input_ids": list(prompts)}, return_tensors="pt").to(
            self._loaded.device
        )
        sampling, seeded = requests[0].sampling, requests[0].seed is not None
        more: dict[str, Any] = {"tokenizer": self._tokenizer} if sampling.stop else {}
        if seeded and sampling.temperature:
            more["logits_processor"] = LogitsProcessorList([_SeededDraw(requests)])
        output = self._loaded.generate(**inputs, generation_config=self._settings(sampling, seeded), **more)
        return output[:, inputs["input_ids"].size(1) :].tolist()

    async def _in_stream(self, request: ChatRequest, ids: list[int]) -> RawResponse:
        async with self._idle:
            if self._manager_sampling != request.sampling:
                await self._idle.wait_for(lambda: not self._streams)
                if self._manager_sampling != request.sampling:
                    await self._stop_manager()
                    settings = self._settings(request.sampling)
                    self._manager = self._loaded.init_continuous_batching(generation_config=settings)
                    self._manager.start()
                    self._manager_sampling = request.sampling
            self._streams += 1
        started = time.monotonic()
        try:
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            name = f"{request.stage}-{id(done)}"
            self._manager.register_result_handler(name, done.set_result)
            self._manager.add_request(ids, request_id=name, max_new_tokens=request.sampling.max_tokens)
            output = await done
        finally:
            async with self._idle:
                self._streams -= 1
                self._idle.notify_all()
        if output.error:
            raise TeacherUnusable(f"continuous batching failed: {output.error}")
        return self._raw(request, ids, list(output.generated_tokens), time.monotonic() - started)

    async def _stop_manager(self) -> None:
        if self._manager is not None:
            await asyncio.to_thread(self._manager.stop, block=True)
            self._manager = self._manager_sampling = None

    def _raw(
        self, request: ChatRequest, prompt: Sequence[int], new: list[int], latency: float
    ) -> RawResponse:
        ends = [position for position, token in enumerate(new) if token in self._eos]
        kept = new[: ends[0]] if ends else [token for token in new if token != self._tokenizer.pad_token_id]
        text = self._tokenizer.decode(kept, skip_special_tokens=True).strip()
        if request.messages[-1][0] == "assistant":
            # With what it goes on from: a tokenizer may drop the space that its first word begins with.
            options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
            before = self._tokenizer.decode(prompt, **options)
            text = self._tokenizer.decode([*prompt, *kept], **options)[len(before) :].rstrip()
        body = {
            "text": text,
            "finish_reason": "stop" if ends else "length",
            "prompt_tokens": len(prompt),
            "completion_tokens": len(kept) + bool(ends),
        }
        return RawResponse(json.dumps(body, ensure_ascii=False), latency)


def _kind(request: ChatRequest) -> tuple[Sampling, bool]:
    """Requests of one kind may be in one batch."""
    return request.sampling, request.seed is not None


class _SeededDraw(LogitsProcessor):
    """Makes the greedy choice a draw, from a stream of random numbers for each request.

    The largest of logits plus Gumbel noise is a sample of their softmax. So what a request draws does not
    depend on what else is in its batch, which a run that is taken up again fills otherwise; but for rounding,
    as padded lengths change the order of sums.

    Args:
        requests: With seeds; their sampling is the same.
    """

    def __init__(self, requests: Sequence[ChatRequest]):
        self._temperature = requests[0].sampling.temperature
        self._nucleus = TopPLogitsWarper(requests[0].sampling.top_p)
        names = [f"{one.seed} {one.sample} {one.messages}".encode() for one in requests]
        seeds = [int.from_bytes(hashlib.sha256(name).digest()[:8], "big") for name in names]
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = self._nucleus(input_ids, scores.float() / self._temperature)
        draws = [torch.empty(scores.size(1)).exponential_(generator=stream) for stream in self._streams]
        return scores - torch.stack(draws).to(scores.device).log()  # -log of an exponential is Gumbel
