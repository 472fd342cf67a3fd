"""Continuous batching by transformers, for prompts that arrive one at a time.

Read in transformers 5.23: `ContinuousMixin.init_continuous_batching`, `ContinuousBatchingManager.add_request` and
`register_result_handler`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edit_trl.models.generation import scheduling

if TYPE_CHECKING:
    from edit_trl.models.decoding import Decoding
    from edit_trl.models.generation import Engine


class Stream:
    """Continuous batching for prompts that arrive one at a time and are all decoded in the same way.

    Takes most of the GPU memory that is left, so only one can be open at a time.

    Args:
        engine: The model. It must stay in eval mode until the stream is closed.
        decoding: How responses are drawn, from the global random state.
        stop: Texts that end a response.
    """

    def __init__(self, engine: Engine, decoding: Decoding, stop: Sequence[str] = ()):
        settings = engine.settings(decoding, stop)
        self._max_new_tokens = decoding.max_new_tokens
        self._manager = engine.model.init_continuous_batching(
            generation_config=settings, continuous_batching_config=scheduling(engine.model.device)
        )
        self._manager.start()

    async def generate(self, prompt: list[int]) -> list[int]:
        """Draw a response; see `Engine.generate`.

        Raises:
            RuntimeError: The scheduler failed.
        """
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        name = str(id(done))
        self._manager.register_result_handler(name, done.set_result)
        self._manager.add_request(prompt, request_id=name, max_new_tokens=self._max_new_tokens)
        output = await done
        if output.error:
            raise RuntimeError(f"continuous batching failed: {output.error}")
        return list(output.generated_tokens)

    def close(self) -> None:
        """Wait for the scheduler to end, and release its memory."""
        self._manager.stop(block=True)
