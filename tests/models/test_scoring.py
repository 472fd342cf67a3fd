"""One forward through the fused head, held against plain logits, and one layout against the other."""

import copy
import functools

import pytest
import torch
from conftest import ROWS
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from test_invariants import config
from tiny_models import MODELS, TINY
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.integrations.flex_attention import WrappedFlexAttention
from trl.trainer.utils import add_fused_lm_head

import edit_trl.models.pairs.scoring
from edit_trl import DualCoTTrainer
from edit_trl.common.errors import InputError
from edit_trl.data.tokenization import tokenize_dual_cot
from edit_trl.models.pairs.collation import DualCoTCollator
from edit_trl.models.pairs.scoring import PairScorer, TreeCheck, make_pair_scorer
from edit_trl.models.pairs.tree_attention import TreeAttention, tree_obstacle


@pytest.fixture
def examples(tokenizer):
    return [tokenize_dual_cot(row, tokenizer) | {"row": n} for n, row in enumerate(ROWS, 1)]


def plain_logps(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


def with_lora(model: nn.Module) -> nn.Module:
    options = {"target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(r=4, **options))


def student(name: str, lora: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # or else what a token attends to would hardly matter
    add_fused_lm_head(model)
    return with_lora(model) if lora else model


def scorer_for(model: nn.Module, layout: str, **options) -> PairScorer:
    collator = DualCoTCollator(pad_token_id=0, layout=layout)
    tree = TreeAttention(model, **options) if layout == "tree" else None
    return PairScorer(model, collator, tree)


def collate(examples, layout: str):
    return DualCoTCollator(pad_token_id=0, layout=layout)(examples)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_plain_logits(name, lora, layout, examples):
    model = student(name, lora)
    plain = copy.deepcopy(model)
    scorer = scorer_for(model, layout)
    batch = collate(examples, layout)
    with torch.no_grad():
        logps = scorer(model.eval(), batch)
        for pair, example in enumerate(examples):
            for side, scored in (("chosen", logps.chosen), ("rejected", logps.rejected)):
                ids = example[f"{side}_ids"]
                expected = plain_logps(plain.eval(), example["prompt_ids"], ids)
                torch.testing.assert_close(scored[pair, : len(ids)], expected, rtol=1e-4, atol=1e-4)
                assert not scored[pair, len(ids) :].any()
    lengths = [len(ex["prompt_ids"]) + len(ex[f"{s}_ids"]) for ex in examples for s in ("chosen", "rejected")]
    assert logps.tokens == sum(lengths) if layout == "padded" else logps.tokens < 0.8 * sum(lengths)


def largest_gradient_difference(model: nn.Module, examples, **options) -> float:
    """Between the layouts, relative to the largest gradient; the loss weighs all tokens differently."""
    weights = torch.arange(1, 400) / 100
    gradients = []
    for layout in ("padded", "tree"):
        scorer = scorer_for(model, layout, **(options if layout == "tree" else {}))
        logps = scorer(model, collate(examples, layout))
        assert layout == "padded" or scorer.tree is not None  # it has not fallen back
        loss = sum((side.pow(2) * weights[: side.size(1)]).sum() for side in (logps.chosen, logps.rejected))
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    padded, tree = gradients
    assert padded.keys() == tree.keys()
    largest = max(gradient.abs().max() for gradient in padded.values())
    assert largest > 0
    return max((padded[name] - tree[name]).abs().max() for name in padded) / largest


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_layouts_give_the_same_gradients(name, lora, checkpointing, examples):
    model = student(name, lora).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert largest_gradient_difference(model, examples) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral_window"])
def test_layouts_give_the_same_gradients_with_a_dense_mask(name, examples):
    assert largest_gradient_difference(student(name).train(), examples, kind="dense") < 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral_window"])
def test_flex_attention_takes_a_block_mask(name, examples, monkeypatch):
    """FlexAttention as PyTorch traces it, without generated kernels, which take a compiler and a minute."""
    monkeypatch.setattr(WrappedFlexAttention, "_instance", None)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = student(name).eval()
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():  # there is no backward on a CPU
        expected = scorer_for(model, "padded")(model, collate(examples, "padded"))
        scorer = scorer_for(model, "tree")
        seen = scorer(model, collate(examples, "tree"))
    assert scorer.tree.kind == "block"
    assert (seen.chosen - expected.chosen).abs().max() < 1e-5
    assert (seen.rejected - expected.rejected).abs().max() < 1e-5


def test_layouts_give_the_same_gradients_in_nf4(tmp_path, examples):
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    LlamaForCausalLM(LlamaConfig(**(TINY | wide))).save_pretrained(tmp_path)
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=quantized)
    add_fused_lm_head(model)
    model = with_lora(model).train()
    assert largest_gradient_difference(model, examples) < 1e-4


@pytest.mark.parametrize("name", ["llama", "qwen2_windows", "gemma3"])
def test_a_float32_student_trains_in_bf16(name, examples):
    """Autocast leaves queries and keys in float32 beside values in bf16."""
    model = student(name)
    seen = {}
    for layout in ("padded", "tree"):
        scorer = scorer_for(model, layout)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen[layout] = scorer(model, collate(examples, layout)).chosen
        assert (scorer.tree is not None) == (layout == "tree")
        seen[layout].sum().backward()
    assert (seen["tree"] - seen["padded"]).abs().mean() < 0.05


def test_pairs_of_one_prompt_give_the_same_gradients(examples):
    """Also where branches leave a branch."""
    first = examples[0]
    cut = first["fork"] + 2
    tail = examples[1]["rejected_ids"]
    sibling = first | {"rejected_ids": first["rejected_ids"][:cut] + tail}
    for name in ("key_mask", "fork_mask"):
        sibling[f"rejected_{name}"] = [False] * len(sibling["rejected_ids"])
    model = student("mistral_window").train()
    assert largest_gradient_difference(model, [first, examples[2], sibling, first]) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_trains(name, examples):
    """Also in training mode, where some models ask for more inputs, every weight that is used learns."""
    model = student(name).train()
    logps = scorer_for(model, "tree")(model, collate(examples, "tree"))
    (logps.chosen.sum() + logps.rejected.sum()).backward()
    text = [n for n, p in model.named_parameters() if "vision" not in n and "multi_modal" not in n]
    grads = dict(model.named_parameters())
    assert text
    assert all(grads[n].grad is not None for n in text)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral_window"])
def test_correct_chains_alone(name, layout, examples):
    model = student(name).eval()
    scorer, batch = scorer_for(model, layout), collate(examples, layout)
    with torch.no_grad():
        both, alone = scorer(model, batch), scorer(model, batch, with_rejected=False)
    assert alone.rejected is None
    torch.testing.assert_close(alone.chosen, both.chosen, rtol=1e-4, atol=1e-5)
    lengths = [len(ex["prompt_ids"]) + len(ex["chosen_ids"]) for ex in examples]
    assert alone.tokens <= sum(lengths) < both.tokens


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_leaves_other_forwards_alone(model, examples, layout):
    ids, mask = torch.tensor([[5, 6, 7], [0, 8, 9]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    before = model(ids, attention_mask=mask).logits
    options = {"max_new_tokens": 3, "do_sample": False, "attention_mask": mask}
    written = model.generate(ids, **options)
    add_fused_lm_head(model)
    scorer_for(model, layout)(model, collate(examples, layout))
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, before)
    assert torch.equal(model.generate(ids, **options), written)


def test_attention_is_not_saved(tmp_path, model):
    TreeAttention(model)
    model.save_pretrained(tmp_path)
    assert "dual_cot_tree" not in (tmp_path / "config.json").read_text()
    assert LlamaForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


# Students that cannot take a tree

TINY_RECURRENT = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}

OBSTACLES = {
    "mamba": (lambda: MambaForCausalLM(MambaConfig(**TINY_RECURRENT)), "its linear_attention layers"),
    "rwkv": (
        lambda: RwkvForCausalLM(RwkvConfig(**TINY_RECURRENT, attention_hidden_size=32)),
        "the layers of RwkvForCausalLM carry a state",
    ),
    "qwen3_next": (
        lambda: Qwen3NextForCausalLM(
            Qwen3NextConfig(
                **TINY,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                shared_expert_intermediate_size=16,
                linear_num_key_heads=2,
                linear_num_value_heads=2,
                linear_key_head_dim=8,
                linear_value_head_dim=8,
                layer_types=["linear_attention", "full_attention"],
            )
        ),
        "its linear_attention layers",
    ),
    "prompt_tuning": (
        lambda: get_peft_model(MODELS["llama"](), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
        "its PROMPT_TUNING adapter puts virtual tokens",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_falls_back_and_says_why(tmp_path, tokenizer, name, log):
    make, reason = OBSTACLES[name]
    torch.manual_seed(0)
    model = make()
    assert reason in tree_obstacle(model)
    options = {"processing_class": tokenizer, "train_dataset": Dataset.from_list(ROWS)}
    trainer = DualCoTTrainer(model, args=config(tmp_path, max_steps=1), **options)
    trainer.train()
    assert trainer.data_collator.layout == "padded"
    assert len([message for message in log if "layout: padded" in message and reason in message]) == 1
    with pytest.raises(InputError, match=r"`layout: tree`: .* cannot take a tree, since .* `layout: auto`"):
        DualCoTTrainer(model, args=config(tmp_path, layout="tree"), **options)


def test_falls_back_where_the_layouts_disagree(tmp_path, tokenizer, log):
    """ALiBi counts places in the row, which nothing in the configuration tells."""
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4))
    assert tree_obstacle(model) is None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    options = {"processing_class": tokenizer, "train_dataset": Dataset.from_list(ROWS)}
    trainer = DualCoTTrainer(copy.deepcopy(model), args=config(tmp_path, max_steps=2), **options)
    trainer.train()
    assert trainer.score_pairs.tree is None
    assert trainer.data_collator.layout == "padded"
    assert len([message for message in log if "layout: padded from here on" in message]) == 1
    padded = DualCoTTrainer(model, args=config(tmp_path, max_steps=2, layout="padded"), **options)
    padded.train()
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (trainer, padded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(("exact", "how"), [(True, "by up to"), (False, "on average by")])
def test_a_tree_asked_for_must_agree(model, examples, exact, how):
    class Wrong(TreeAttention):
        def inputs(self, runs, position_ids):
            return super().inputs([run._replace(ancestors=()) for run in runs], position_ids)

    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    add_fused_lm_head(model)
    collator = DualCoTCollator(pad_token_id=0)
    check = TreeCheck(examples[0], exact, required=True)
    scorer = PairScorer(model, collator, Wrong(model), check)
    with pytest.raises(InputError, match=rf"differ {how} .* the padded layout's.*`layout: auto`"):
        scorer(model, collator(examples))


def test_a_failure_on_the_way_ends_in_the_padded_layout(model, examples, log):
    class Breaks(TreeAttention):
        calls = 0

        def inputs(self, runs, position_ids):
            self.calls += 1
            if self.calls > 2:
                raise RuntimeError("no kernel for this shape")
            return super().inputs(runs, position_ids)

    add_fused_lm_head(model)
    collator = DualCoTCollator(pad_token_id=0)
    scorer = PairScorer(model.eval(), collator, Breaks(model))
    with torch.no_grad():
        seen = [scorer(model, collate(examples, "tree")).chosen for _ in range(4)]
    assert collator.layout == "padded"
    assert [m for m in log if "the tree layout failed (RuntimeError: no kernel for this shape)" in m]
    for logps in seen[1:]:
        torch.testing.assert_close(logps, seen[0], rtol=1e-4, atol=1e-5)


def test_out_of_memory_is_no_reason_for_more_memory(model, examples):
    class Full(TreeAttention):
        def inputs(self, runs, position_ids):
            raise torch.OutOfMemoryError

    add_fused_lm_head(model)
    scorer = PairScorer(model, DualCoTCollator(pad_token_id=0), Full(model))
    with pytest.raises(torch.OutOfMemoryError):
        scorer(model, collate(examples, "tree"))


def test_the_check_leaves_the_modes_as_they_were(examples):
    model = student("llama", lora=True).train()
    model.get_base_model().lm_head.eval()
    before = {name: module.training for name, module in model.named_modules()}
    collator = DualCoTCollator(pad_token_id=0)
    scorer = make_pair_scorer(model, collator, "auto", check_example=examples[0])
    scorer(model, collator(examples))
    assert scorer.tree is not None
    assert {name: module.training for name, module in model.named_modules()} == before


def naive_best(model: nn.Module, example: dict) -> list[int]:
    """The likeliest token in the place of each of the correct chain's, one at a time."""
    ids = torch.tensor([example["prompt_ids"] + example["chosen_ids"]])
    logits = model(input_ids=ids).logits[0]
    start = len(example["prompt_ids"]) - 1
    return logits[start : start + len(example["chosen_ids"])].argmax(-1).tolist()


@pytest.mark.parametrize("logits", [2**25, 400 * 7])  # at once, and seven positions at a time
@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_likeliest_tokens_come_with_the_same_forward(name, layout, logits, examples, monkeypatch):
    monkeypatch.setattr(edit_trl.models.pairs.scoring, "_LOGITS", logits)
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    before = model.config._attn_implementation
    expected = [naive_best(model, example) for example in examples]
    collator = DualCoTCollator(pad_token_id=0)
    scorer = make_pair_scorer(model, collator, layout, check_example=examples[0], with_best=True)
    assert (scorer.tree is not None) == (layout == "auto")
    seen = scorer(model, collator(examples))
    assert scorer.tree is not None or layout == "padded"
    for row, best in enumerate(expected):
        assert seen.chosen_best[row, : len(best)].tolist() == best
    scorer.remove()
    assert model.config._attn_implementation == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    add_fused_lm_head(model)
    theirs = PairScorer(model, collator)(model, DualCoTCollator(0, layout="padded")(examples))
    torch.testing.assert_close(seen.chosen, theirs.chosen, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.rejected, theirs.rejected, atol=1e-4, rtol=1e-4)
