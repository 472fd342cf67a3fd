"""Attention along a tree; no other module depends on how a model implements attention.

A batch in the tree layout is one row in which a token attends to its ancestors only, not to everything before
it. How that is done depends on the attention the model was loaded with:

- `sdpa`: two fused calls per pair. For each stretch of the tree, scaled dot-product attention of its tokens
  over the keys of its ancestors and its own, causal towards the lower right. No mask of T x T is made, and
  nothing is computed between one pair and another: with 4 pairs of 300 tokens this takes a third of the time
  of a dense mask on a CPU (`python benchmarks/train_speed.py --systems tree tree_dense`).
- `eager`: a dense mask, added to the scores. For models that SDPA cannot run (soft-capping, sinks).
- `flex_attention`: a BlockMask, made from the stretches (`edit_trl.models.pairs.block_mask`).

The tokens on a path of the tree have the positions 0, 1, 2, ..., so a sliding window depends on positions and
not on places in the row.

Read in transformers 5.23: `AttentionInterface` and `AttentionMaskInterface` (how an attention function is
registered; a 4D mask is passed on unchanged; keyword arguments reach the attention function),
`sdpa_attention_forward`, `PreTrainedModel._is_stateful` and `_supports_sdpa`, `config.layer_types`,
`config._attn_implementation`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flex_attention_mask, sdpa_mask

from edit_trl.models.pairs.block_mask import block_attention_forward, tree_block_mask
from edit_trl.models.pairs.collation import Stretch

TreeAttentionKind = Literal["stretches", "dense", "block"]

KIND_OF_ATTENTION: dict[str, TreeAttentionKind] = {"sdpa": "stretches", "eager": "dense", "flex_attention": "block"}
LAYERS_THAT_TAKE_A_TREE = frozenset({"full_attention", "sliding_attention", "attention"})

_NAMES: dict[TreeAttentionKind, str] = {"stretches": "dual_cot_tree", "block": "dual_cot_tree_blocks"}


def tree_obstacle(model: nn.Module) -> str | None:
    """Return why a model cannot take a tree, or None where it can.

    Args:
        model: A causal language model, or a PEFT model of one.

    Returns:
        The obstacle, such as "its linear_attention layers mix all tokens of a row".
    """
    base = base_model(model)
    if is_peft_model(model):
        adapters: Any = model.peft_config
        virtual = [peft.peft_type.value for peft in adapters.values() if peft.is_prompt_learning]
        if virtual:
            return f"its {virtual[0]} adapter puts virtual tokens before the row"
    layers = set(getattr(base.config.get_text_config(), "layer_types", None) or ())
    foreign = sorted(layers - LAYERS_THAT_TAKE_A_TREE)
    if foreign:
        return f"its {', '.join(foreign)} layers do not read a mask of ancestors"
    if base._is_stateful:
        return f"the layers of {type(base).__name__} carry a state from token to token"
    attention = base.config._attn_implementation
    if attention not in KIND_OF_ATTENTION and attention not in _NAMES.values():
        return (
            f"its attention is {attention!r}, which reads no mask of ancestors (with `attn_implementation: sdpa` or "
            "`flex_attention` it can)"
        )
    return None


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the model without its PEFT adapter."""
    base: Any = model
    return base.get_base_model() if is_peft_model(model) else base


class TreeAttention:
    """Makes the inputs with which a model attends along a tree.

    Args:
        model: A model without a `tree_obstacle`. Where it uses SDPA or FlexAttention, its attention becomes a
            function that is the same for anything but a tree.
        kind: How the tree is passed on; chosen by the model's attention where None.
        causal_mask: Makes the mask of N queries over the last N of M keys for kind `stretches`.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: TreeAttentionKind | None = None,
        causal_mask: Callable[[int, int], Tensor] = causal_lower_right,
    ):
        base = base_model(model)
        attention = base.config._attn_implementation
        self._base, self._before = base, attention
        names = {name: kind for kind, name in _NAMES.items()}  # of a model that has been given a tree before
        self.kind = kind or (KIND_OF_ATTENTION | names)[attention]
        self._config = base.config.get_text_config()
        self._dtype = base.dtype
        self._additive = attention == "eager"
        self._causal_mask = causal_mask
        if self.kind in _NAMES:
            base.set_attn_implementation(_NAMES[self.kind])

    def remove(self) -> None:
        """Restore the attention that the model had."""
        if self.kind in _NAMES:
            self._base.set_attn_implementation(self._before)

    def replace_failed(self) -> str | None:
        """Give a model that uses FlexAttention another attention for padded batches, and return its name.

        What cannot be compiled for a tree may not compile for padded batches either.
        """
        if self.kind != "block":
            return None
        capped = getattr(self._config, "attn_logit_softcapping", None) is not None
        name = "sdpa" if self._base._supports_sdpa and not capped else "eager"
        self._base.set_attn_implementation(name)
        return name

    def inputs(self, stretches: Sequence[Stretch], position_ids: Tensor) -> dict[str, Any]:
        """Return keyword arguments for the model's backbone.

        Args:
            stretches: The tree.
            position_ids: Shape (1, T).
        """
        if self.kind == "stretches":
            # A 4D mask, since transformers passes that on to the layers unchanged; its content is not read.
            nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=position_ids.device)
            return {"attention_mask": nothing, "tree": _Tree(stretches, self._causal_mask)}
        window = getattr(self._config, "sliding_window", None)
        kinds = set(getattr(self._config, "layer_types", None) or ())
        if len(kinds) > 1:
            masks = {
                kind: self._mask(stretches, position_ids, window if kind == "sliding_attention" else None)
                for kind in kinds
            }
            return {"attention_mask": masks}
        return {"attention_mask": self._mask(stretches, position_ids, None if kinds == {"full_attention"} else window)}

    def _mask(self, stretches: Sequence[Stretch], position_ids: Tensor, window: int | None) -> Any:
        if self.kind == "block":
            return tree_block_mask(stretches, position_ids.device, window)
        mask = dense_tree_mask(stretches, position_ids, window)
        if self._additive:
            lowest = torch.finfo(self._dtype).min
            mask = torch.zeros(mask.shape, dtype=self._dtype, device=mask.device).masked_fill(~mask, lowest)
        return mask[None, None]


def dense_tree_mask(stretches: Sequence[Stretch], position_ids: Tensor, window: int | None = None) -> Tensor:
    """Return the mask of the tokens that each token attends to: bool, shape (T, T), query by key.

    Args:
        stretches: The tree.
        position_ids: Shape (1, T).
        window: Number of tokens that a token sees, itself included; all where None.
    """
    size = position_ids.size(1)
    mask = torch.zeros(size, size, dtype=torch.bool, device=position_ids.device)
    for start, stop, ancestors in stretches:
        for first, last in ancestors:
            mask[start:stop, first:last] = True
        mask[start:stop, start:stop] = torch.ones_like(mask[start:stop, start:stop]).tril()
    if window is not None:
        mask &= position_ids.T - position_ids < window
    return mask


class _Tree:
    """The tree of one forward pass, with the window masks that its layers share."""

    def __init__(self, stretches: Sequence[Stretch], causal_mask: Callable[[int, int], Tensor]):
        self.stretches, self._causal_mask = stretches, causal_mask
        self._masks: dict[tuple[Stretch, int], Tensor] = {}

    def mask(self, stretch: Stretch, length: int, window: int | None, device: torch.device) -> Tensor | None:
        """Return what the queries see of the `length` keys of their path; None for causal attention."""
        own = stretch.stop - stretch.start
        if window is None or length <= window:
            # A lone query sees its whole path.
            return None if own in (1, length) else self._causal_mask(own, length)
        if (stretch, window) not in self._masks:
            ones = torch.ones(own, length, dtype=torch.bool, device=device)
            past = length - own
            self._masks[stretch, window] = (ones.tril(past) & ones.triu(past - window + 1))[None, None]
        return self._masks[stretch, window]


@torch.compiler.disable  # with `torch_compile`, every other tree would be compiled anew
def _tree_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tree: _Tree | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Run SDPA; with a tree, SDPA of each stretch over its path.

    Query, key and value have the shape (1, heads, T, size of a head).
    """
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs.pop("is_causal", None)
    if torch.is_autocast_enabled(query.device.type):
        # Autocast does not reach into a `CausalBias`, and rotary embeddings leave queries in float32.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    outputs = []
    for stretch in tree.stretches:
        path = [*stretch.ancestors, (stretch.start, stretch.stop)]
        keys, values = (_along(path, tensor) for tensor in (key, value))
        mask = tree.mask(stretch, keys.size(2), kwargs.get("sliding_window"), query.device)
        queries = query[:, :, stretch.start : stretch.stop]
        outputs.append(sdpa_attention_forward(module, queries, keys, values, mask, is_causal=True, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def _along(path: Sequence[tuple[int, int]], tensor: Tensor) -> Tensor:
    pieces = [tensor[:, :, start:stop] for start, stop in path]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


AttentionInterface.register(_NAMES["stretches"], _tree_attention_forward)
AttentionMaskInterface.register(_NAMES["stretches"], sdpa_mask)
AttentionInterface.register(_NAMES["block"], block_attention_forward)
AttentionMaskInterface.register(_NAMES["block"], flex_attention_mask)
