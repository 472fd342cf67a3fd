"""Adapters that reach the LM head: what is trainable is trained, and the loss is that of the model's own logits."""

import pytest
import torch
import trl.trainer.utils as trl_utils
from conftest import ROWS, conversational, tiny_llama
from peft import LoraConfig, get_peft_model
from trainers import make_trainer
from transformers import LlamaForCausalLM

from edit_trl.common.errors import InputError
from edit_trl.models.pairs import fused_head

TOKENS = {"trainable_token_indices": {"embed_tokens": [1, 2, 3]}}


def llama(tied: bool) -> LlamaForCausalLM:
    settings = tiny_llama().config
    settings.tie_word_embeddings = tied
    torch.manual_seed(0)
    return LlamaForCausalLM(settings)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        TOKENS,
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
)
@pytest.mark.parametrize("reference", ["none", "adapter_off"])
def test_what_is_trainable_is_trained(tmp_path, tokenizer, tied, more, reference):
    peft_config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **more)
    options = {"max_steps": 2, "reference": reference, "preference_weight": 0.5}
    rows = list(map(conversational, ROWS))  # with the tokens that are trained
    trainer = make_trainer(tmp_path, tokenizer, llama(tied), rows, peft_config, **options)
    model = trainer.model
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    example = trainer.train_dataset[0]
    batch = trainer.data_collator([example])
    untrained = trainer.score_pairs(model.eval(), batch).chosen
    trainer.train()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    model.eval()
    ids = torch.tensor([example["prompt_ids"] + example["chosen_ids"]])
    labels = torch.tensor(example["chosen_ids"])[:, None]
    with torch.no_grad():
        scored = trainer.score_pairs(model, batch).chosen[0]
        logits = model(input_ids=ids).logits.log_softmax(-1)[0, len(example["prompt_ids"]) - 1 : -1]
        assert torch.allclose(scored, logits.gather(1, labels)[:, 0], atol=1e-5)
        with model.disable_adapter():  # the reference is the student before training, head and tokens included
            assert torch.allclose(trainer.score_pairs(model, batch).chosen, untrained, atol=1e-6)


def test_a_head_that_cannot_run_is_refused(tmp_path, tokenizer):
    both = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], **TOKENS)
    with pytest.raises(InputError, match=r"`trainable_token_indices` and the LM head in `modules_to_save`.*Use one of"):
        make_trainer(tmp_path, tokenizer, llama(tied=True), peft_config=both)


def test_an_adapter_that_is_on_the_head_is_refused(tmp_path, tokenizer):
    model = get_peft_model(llama(tied=False), LoraConfig(r=2, target_modules=r".*(q_proj|lm_head)"))
    with pytest.raises(InputError, match="LoRA on `lm_head` would never be trained"):
        make_trainer(tmp_path, tokenizer, model)


def test_the_tiles_of_a_cpu_are_its_own_and_change_nothing_else(tmp_path, tokenizer, monkeypatch):
    trainer = make_trainer(tmp_path, tokenizer, llama(tied=True), layout="padded")
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    tiles, before = [], trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
    head = trl_utils._ChunkedLogProbFunction

    class Recording:
        @staticmethod
        def apply(*arguments):
            tiles.append(arguments[5])
            return head.apply(*arguments)

    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", Recording)
    gradients = []
    for tile in (fused_head.CPU_TILE, 7, before):
        monkeypatch.setattr(fused_head, "CPU_TILE", tile)
        trainer.model.zero_grad()
        logps = trainer.score_pairs(trainer.model.eval(), batch)
        (logps.chosen.sum() - logps.rejected.sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert tiles == [2048, 7, before]
    assert before == trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE  # other trainers of this process have TRL's
    for gradient in gradients[:2]:
        assert torch.allclose(gradient, gradients[2], atol=1e-5)
    with fused_head.head_tiles(torch.device("cuda")):
        assert before == trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
