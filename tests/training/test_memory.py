"""Memory estimates: the parts against arithmetic by hand, and what `--dry_run` prints."""

import json
import re

import pytest
import torch
from conftest import ROWS, tiny_llama
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from edit_trl.cli.main import main
from edit_trl.training.memory.estimate import CPU_KERNELS, GIB, MemoryEstimate, estimate_memory, optimizer_bytes
from edit_trl.training.memory.longest_batch import batch_tokens, made_up_examples
from edit_trl.training.recipe.outline import Recipe
from edit_trl.training.recipe.resolving import resolve_runs

MINIMAL = {"model_name_or_path": "m", "dataset_name": "d.jsonl", "output_dir": "o", "use_cpu": True}


def estimate(pairs: int = 2, length: int = 64, device: str = "cuda", shards: int = 1, mixed=None, **options):
    run = resolve_runs(Recipe(None, MINIMAL | options), {})[0]
    config = tiny_llama().config
    config.architectures = ["LlamaForCausalLM"]
    examples = made_up_examples(pairs, length)
    return estimate_memory(config, run.model, run.training, examples, device=device, mixed=mixed, shards=shards)


def test_weights_gradients_and_optimizer_of_full_fine_tuning():
    found, model = estimate(), tiny_llama()
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert (found.parameters, found.trained) == (weights, weights)
    assert found.parts["weights"] == 4 * weights
    assert found.parts["optimizer"] == 8 * weights
    assert found.parts["adapter"] == 0
    assert 0 <= found.parts["gradients"] <= 4 * weights
    assert found.peak == sum(found.parts.values())


def test_four_bit_weights_with_nested_statistics():
    found = estimate(use_peft=True, load_in_4bit=True, lora_r=4)
    layers = [m for n, m in tiny_llama().named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    kept = found.parameters - sum(m.weight.numel() for m in layers)
    # Half a byte each, a byte for 64 of them, four for 256 of those, and two code books.
    four_bit = sum(
        m.weight.numel() // 2 + m.weight.numel() // 64 + 4 * -(-m.weight.numel() // 64 // 256) + 4 * 272 for m in layers
    )
    assert found.parts["weights"] == four_bit + 2 * kept
    adapter = sum(4 * (m.in_features + m.out_features) for m in layers)
    assert (found.trained, found.parts["adapter"]) == (adapter, 2 * adapter)


def test_matches_the_bytes_of_a_real_four_bit_model(saved_student):
    from bitsandbytes.nn import Linear4bit
    from trl.trainer.utils import create_model_from_path

    from edit_trl.training.quantization import quantization_config

    run = resolve_runs(Recipe(None, MINIMAL | {"use_peft": True, "load_in_4bit": True}), {})[0]
    config = quantization_config(run.model, run.training)
    model = create_model_from_path(str(saved_student), dtype="bfloat16", quantization_config=config)
    real = sum(parameter.nbytes for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            books = (state.absmax, state.code, state.state2.absmax, state.state2.code)
            real += sum(tensor.nbytes for tensor in books)
    found = estimate(use_peft=True, load_in_4bit=True).parts["weights"]
    assert found == pytest.approx(real, rel=0.01)


def test_the_tree_takes_less_than_the_padded_layout():
    tree, padded = estimate(layout="tree", length=128), estimate(layout="padded", length=128)
    assert (tree.layout, padded.layout) == ("tree", "padded")
    assert padded.batch_tokens == 2 * 2 * 128
    assert tree.batch_tokens == sum([128 + 127 - 32 - 47] * 2)  # without prompt and shared tokens twice
    off = {"gradient_checkpointing": False, "length": 128}
    assert estimate(layout="tree", **off).peak < estimate(layout="padded", **off).peak


def test_half_precision_on_a_cpu_takes_the_kernels_that_onednn_keeps():
    def overhead(**options) -> int:
        return estimate(device="cpu", **options).parts["overhead"]

    plain = overhead(dtype="float32")
    assert overhead(dtype="float32", use_peft=True) == plain
    assert overhead(dtype="bfloat16") == plain + CPU_KERNELS
    assert overhead(dtype="float32", mixed=torch.bfloat16) == plain + CPU_KERNELS
    assert overhead(use_peft=True, load_in_4bit=True) == plain + CPU_KERNELS  # bfloat16 where it computes


def test_without_targets_the_adapter_is_on_those_of_peft():
    found = estimate(use_peft=True, lora_r=4, dtype="float32")
    attention = [m for n, m in tiny_llama().named_modules() if n.endswith(("q_proj", "v_proj"))]
    assert found.trained == sum(4 * (m.in_features + m.out_features) for m in attention)


def test_a_warm_up_takes_the_memory_of_the_correct_chains():
    """Its wrong chains are run for the metrics alone, without gradients."""
    options = {"layout": "padded", "gradient_checkpointing": False, "length": 128}
    pairs = estimate(**options)
    warm_up = estimate(**options, preference_weight=0.0)
    assert warm_up.batch_tokens == pairs.batch_tokens // 2
    assert warm_up.parts["activations"] < 0.6 * pairs.parts["activations"]
    tree = estimate(**options | {"layout": "tree"}, preference_weight=0.0)
    assert tree.batch_tokens == 2 * 128
    assert tree.parts["activations"] < 1.1 * warm_up.parts["activations"]


def test_checkpointing_takes_fewer_activations():
    lora = {"use_peft": True, "lora_target_modules": "all-linear", "length": 256}
    on, off = (estimate(gradient_checkpointing=flag, **lora) for flag in (True, False))
    assert on.parts["activations"] < off.parts["activations"]
    assert on.parts["weights"] == off.parts["weights"]


def test_activations_are_those_that_torch_keeps():
    """Of a real forward: every tensor kept for the backward pass, weights left out."""
    from edit_trl.models.pairs.collation import DualCoTCollator

    found = estimate(layout="padded", gradient_checkpointing=False, length=256, device="cpu")
    model, kept = tiny_llama().train(), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = DualCoTCollator(0, layout="padded")(made_up_examples(2, 256))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    assert hidden.requires_grad
    # And something while a layer runs; the head comes on top.
    assert sum(kept.values()) * 0.95 <= found.parts["activations"] <= sum(kept.values()) * 1.3


def test_the_heap_of_a_cpu_stays_and_mapped_blocks_go():
    from edit_trl.common.malloc import LARGEST_IN_HEAP
    from edit_trl.training.memory.trace import _Ledger

    small, large = LARGEST_IN_HEAP, 2 * LARGEST_IN_HEAP
    ledger = _Ledger()
    with FakeTensorMode(), ledger:
        for size in (small, large, large, small):  # one after the other
            tensor = torch.empty(size, dtype=torch.uint8)
            del tensor
    assert ledger.peak.total == large
    assert ledger.peak_on_cpu().total == small + large


def test_shards_hold_their_part_and_one_layer_whole():
    whole, part = estimate(), estimate(shards=4)
    assert part.parts["weights"] == whole.parts["weights"] // 4
    assert part.parts["optimizer"] == whole.parts["optimizer"] // 4


@pytest.mark.parametrize(
    ("name", "bytes_each"),
    [("adamw_torch_fused", 8), ("paged_adamw_32bit", 8), ("sgd", 0), ("lion_32bit", 4), ("adafactor", 0)],
)
def test_optimizer_states(name, bytes_each):
    assert optimizer_bytes(name, [nn.Parameter(torch.zeros(100, 100))]) == bytes_each * 10_000


def test_eight_bit_states_and_what_is_too_small_for_them():
    large, small = nn.Parameter(torch.zeros(256, 256)), nn.Parameter(torch.zeros(100))
    blocks = 65536 // 256
    assert optimizer_bytes("paged_adamw_8bit", [large, small]) == 2 * (65536 + 4 * blocks) + 8 * 100
    half = nn.Parameter(torch.zeros(100, dtype=torch.bfloat16))
    assert optimizer_bytes("adamw_torch", [half]) == 4 * 100  # torch keeps states as the weights are


def test_which_cards_hold_it():
    assert MemoryEstimate({"weights": 11 * GIB}, "tree", 1, 1, 1).fits() == [12, 16, 24, 48, 80]
    assert MemoryEstimate({"weights": 12 * GIB}, "tree", 1, 1, 1).fits() == [16, 24, 48, 80]
    assert MemoryEstimate({"weights": 90 * GIB}, "tree", 1, 1, 1).fits() == []


def test_made_up_pairs_have_the_length_asked_for():
    for length in (2, 5, 64):
        pair = made_up_examples(1, length)[0]
        assert len(pair["prompt_ids"]) + len(pair["chosen_ids"]) == max(length, 3)
        assert pair["chosen_ids"] != pair["rejected_ids"]
    assert batch_tokens(made_up_examples(3, 64), "padded") == 6 * 64


# The command


@pytest.fixture
def recipe(tmp_path, saved_student):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model_name_or_path: {saved_student}\ndataset_name: {tmp_path}/rows.jsonl\n"
        f"output_dir: {tmp_path}/out\nuse_peft: true\nload_in_4bit: true\nreport_to: none\n"
        "per_device_train_batch_size: 2\nmax_length: 200\n"
        "stages:\n  - name: warm_up\n    preference_weight: 0.0\n  - name: key_steps\n    lora_r: 8\n"
    )
    return path


def dry_run(recipe, capfd, *options: str) -> tuple[int, str, str]:
    code = main(["train", "--dry_run", "--config", str(recipe), *options])
    out, errors = capfd.readouterr()
    return code, out, errors


def test_dry_run_tells_every_stage(recipe, tmp_path, capfd):
    code, out, _ = dry_run(recipe, capfd)
    assert code == 0
    assert out.count("fits GPUs of: 8, 12, 16, 24, 48, 80 GB") == 2
    for part in ("weights", "adapter", "optimizer", "activations", "overhead", "peak"):
        assert out.count(f"\n  {part} ") == 2, part
    assert "as if every chain had 200 tokens (no rows here)" in out
    assert "optimizer adamw_8bit" in out or "optimizer paged_adamw_8bit" in out
    assert not (tmp_path / "out").exists()  # nothing was started
    # The weights may be gone: only the configuration is read.
    (tmp_path / "student" / "model.safetensors").unlink()
    code, out, _ = dry_run(recipe, capfd, "--stage", "key_steps", "--use_cpu", "true", "--layout", "padded")
    assert code == 0
    assert "stage warm_up" not in out
    assert "this machine has" in out
    assert "tokens in the padded layout" in out


def test_dry_run_takes_the_longest_pairs_that_are_here(recipe, tmp_path, capfd):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    code, out, _ = dry_run(recipe, capfd, "--layout", "padded")
    assert code == 0
    warm_up, key_steps = out.split("stage key_steps")
    assert "longest batch: 2 correct chains" in warm_up
    assert "longest batch: 2 pairs" in key_steps
    assert out.count(f"the longest of {tmp_path}") == 2


def test_dry_run_fills_batches_by_tokens(recipe, tmp_path, capfd):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ("--stage", "key_steps", "--max_length", "400")
    tokens = {}
    for layout in ("padded", "tree"):
        code, out, _ = dry_run(recipe, capfd, *words, "--layout", layout, "--max_tokens_per_batch", "200")
        assert code == 0
        tokens[layout] = int(re.search(r"([\d,]+) tokens in the", out)[1].replace(",", ""))
        assert 100 < tokens[layout] <= 200
    code, _, errors = dry_run(recipe, capfd, *words, "--max_tokens_per_batch", "10")
    assert (code, "longer than `max_tokens_per_batch: 10`" in errors) == (2, True)


def test_dry_run_refuses_what_training_refuses(recipe, tmp_path, capfd):
    code, _, errors = dry_run(recipe, capfd, "--stage", "warmup")
    assert (code, "it has: warm_up, key_steps" in errors) == (2, True)
    code, _, errors = dry_run(recipe, capfd, "--model_name_or_path", str(tmp_path / "nobody"))
    assert (code, "cannot be loaded" in errors) == (2, True)
    code, _, errors = dry_run(recipe, capfd, "--lora_target_modules", "lm_head")
    assert (code, "would never be trained" in errors) == (2, True)
    assert "Traceback" not in errors
