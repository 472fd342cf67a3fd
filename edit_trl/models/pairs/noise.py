"""NEFTune (arXiv 2310.05914): noise on the embeddings of chains in training, the same in both layouts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edit_trl.models.pairs.tree_attention import base_model


@contextmanager
def noisy_embeddings(
    model: nn.Module, alpha: float | None, chain_lengths: Callable[[], Tensor | None]
) -> Iterator[None]:
    """Add uniform noise of at most α / sqrt(L d) to embeddings of size d in training mode, inside the block.

    L is the length of the chain, as in the authors' code. `transformers` takes the width of the row, which is that of
    the longest chain where rows are padded, and that of the whole batch in the tree layout.

    Args:
        model: The student, or a PEFT model of it, unwrapped.
        alpha: `neftune_noise_alpha`; None for no noise.
        chain_lengths: See `edit_trl.models.pairs.scoring.PairScorer.chain_lengths`.
    """
    if alpha is None:
        yield
        return

    def add_noise(module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        lengths = chain_lengths() if module.training else None
        if lengths is None:
            return output
        magnitude = alpha / (lengths * output.size(-1)).sqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * magnitude.unsqueeze(-1).to(output.dtype)

    embeddings: Any = base_model(model).get_input_embeddings()
    embeddings.neftune_noise_alpha = alpha  # as `transformers` marks them
    handle = embeddings.register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()
        del embeddings.neftune_noise_alpha
