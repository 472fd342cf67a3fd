"""FlexAttention's mask of a tree, held against the dense mask, and what becomes of it where it cannot be compiled."""

import functools
import random

import pytest
import torch
from conftest import ROWS
from datasets import Dataset
from test_invariants import config
from test_scoring import largest_gradient_difference, student
from torch.nn.attention import flex_attention
from transformers.integrations.flex_attention import WrappedFlexAttention

from edit_trl import DualCoTTrainer
from edit_trl.models.pairs.block_mask import BLOCK, _tried, tree_block_mask, walk
from edit_trl.models.pairs.collation import DualCoTCollator
from edit_trl.models.pairs.tree_attention import dense_tree_mask


def random_tree(seed: int, pairs: int, length: int):
    """The stretches and positions of pairs, some of one prompt, that fork anywhere."""
    rng = random.Random(seed)
    prompts = [rng.choices(range(9), k=rng.randint(1, length)) for _ in range(2)]
    examples = []
    for row in range(pairs):
        chosen = rng.choices(range(9), k=rng.randint(2, length))
        fork = rng.randrange(len(chosen))
        rejected = [*chosen[:fork], 9, *rng.choices(range(9), k=rng.randint(1, length))]
        example = {"prompt_ids": rng.choice(prompts), "row": row, "fork": fork}
        for side, ids in (("chosen", chosen), ("rejected", rejected)):
            example |= {
                f"{side}_ids": ids,
                f"{side}_key_mask": [True] * len(ids),
                f"{side}_fork_mask": [True] * len(ids),
            }
        examples.append(example)
    batch = DualCoTCollator(0)(examples)
    return batch["layout"].stretches, batch["position_ids"]


@pytest.mark.parametrize("window", [None, 16, 150])
@pytest.mark.parametrize(("pairs", "length"), [(1, 8), (3, 60), (4, 400), (6, 130)])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_dense_mask(seed, pairs, length, window):
    stretches, position_ids = random_tree(seed, pairs, length)
    tokens = position_ids.size(1)
    assert walk(stretches)[2].tolist() == position_ids[0].tolist()
    dense = dense_tree_mask(stretches, position_ids, window)
    mask = tree_block_mask(stretches, dense.device, window)
    size = mask.shape[-1]
    assert size % BLOCK == 0
    assert 0 <= size - tokens < BLOCK
    seen = flex_attention.create_mask(mask.mask_mod, 1, 1, size, size, "cpu")[0, 0]
    assert torch.equal(seen[:tokens, :tokens], dense)
    # The tokens that fill the last block see themselves, and are seen by no other.
    assert not seen[:tokens, tokens:].any()
    assert not seen[tokens:, :tokens].any()
    assert seen.diagonal().all()
    # Blocks that are left out are empty, and those that are not tested are seen whole.
    blocks = seen.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(1, 2)
    full = flex_attention._ordered_to_dense(mask.full_kv_num_blocks, mask.full_kv_indices, size // BLOCK)[0, 0].bool()
    listed = mask.to_dense()[0, 0].bool()
    assert not blocks[~listed].any()
    assert blocks[full].all()
    if window is None:
        assert torch.equal(listed, blocks.any(-1).any(-1))
        assert torch.equal(full, blocks.all(-1).all(-1))


@pytest.fixture
def flex_with_a_backward_pass(monkeypatch):
    """PyTorch's own reference of FlexAttention, forward and backward, without generated kernels.

    PyTorch refuses a backward pass on a CPU since it cannot generate a kernel for it.
    """
    monkeypatch.setattr(WrappedFlexAttention, "_instance", None)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(flex_attention, "_validate_device", lambda query, key, value: None)
    _tried.clear()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("name", ["llama", "qwen2_windows", "gemma3", "mistral_window"])
def test_layouts_give_the_same_gradients(name, checkpointing, tokenizer, flex_with_a_backward_pass):
    from edit_trl.data.tokenization import tokenize_dual_cot

    examples = [tokenize_dual_cot(row, tokenizer) | {"row": n} for n, row in enumerate(ROWS, 1)]
    model = student(name).train()
    model.set_attn_implementation("flex_attention")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert largest_gradient_difference(model, examples) < 1e-4
    assert _tried


def test_training_goes_on_padded_where_flex_attention_cannot_be_compiled(tmp_path, model, tokenizer, log):
    """Here it cannot: there is no backward pass on a CPU. Nothing of the failed step is left in the gradients."""
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    losses = []
    for attention, layout in (("flex_attention", "auto"), ("sdpa", "padded")):
        model.load_state_dict(state)
        model.set_attn_implementation(attention)
        trainer = DualCoTTrainer(
            model,
            args=config(tmp_path, layout=layout, max_steps=2, logging_steps=1),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
        )
        trainer.train()
        assert trainer.data_collator.layout == "padded"
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    lines = [message for message in log if "layout: padded" in message]
    assert len(lines) == 1
    assert lines[0].startswith(
        "layout: padded from here on, with sdpa instead of flex_attention, since the tree layout failed "
        "(NotImplementedError: FlexAttention does not support backward on CPU."
    )
    assert "\n" not in lines[0]
