"""Two processes (gloo, on the CPU) do what one does.

FSDP2 too: torch shards on a CPU, but accelerate 1.15 takes FSDP for GPUs only. `AcceleratorState.__init__`
makes `DistributedType.FSDP` of MULTI_GPU and its like, and leaves MULTI_CPU as it is. Here that one step is
taken after it; sharding, gathering, loading and clipping are accelerate's and torch's own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import accelerate.state
import pytest
import torch
from accelerate.utils import DistributedType
from conftest import ROWS, byte_level_tokenizer, tiny_llama
from datasets import Dataset
from peft import LoraConfig
from test_invariants import config
from torch.distributed.tensor import DTensor

from edit_trl import DualCoTTrainer

# Adam would make much of a gradient that is nearly zero.
OPTIONS = {"optim": "sgd", "preference_weight": 0.5, "rejected_key_weight": 0.1, "normalization": "step"}
OPTIONS |= {"learning_rate": 0.1, "max_steps": 2}
CASES = {
    # Two optimizer steps of eight pairs each; `processes` x pairs x accumulation is eight.
    "tree": {"layout": "tree", "gradient_accumulation_steps": 2},
    "padded": {"layout": "padded", "gradient_accumulation_steps": 2},
    # All pairs in each step.
    "tokens": {"max_tokens_per_batch": 300, "num_train_epochs": 2, "max_steps": -1},
    "workers": {"layout": "tree", "gradient_accumulation_steps": 2, "dataloader_num_workers": 1},
    "lora": {"layout": "tree", "gradient_accumulation_steps": 2, "learning_rate": 3.0},
    # The wrong chains are run beside, without gradients, since every step is logged.
    "warm up": {
        "layout": "tree",
        "gradient_accumulation_steps": 2,
        "preference_weight": 0.0,
        "rejected_key_weight": 0.0,
    },
    "full precision checkpoints": {"layout": "tree", "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
}
# As recipes/accelerate/fsdp2.yaml has it.
FSDP2 = {
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
SHARDED = ("tree", "padded", "lora", "warm up", "full precision checkpoints")
# The Trainer's logs are float32 sums in another order; weights after two steps of SGD at 0.1.
LOG_TOLERANCE = 1e-4


def student(case: str):
    model = tiny_llama()
    if case == "padded":  # a tied head: its weight is in two places of one group of FSDP
        model.config.tie_word_embeddings = True
        torch.manual_seed(0)
        model = type(model)(model.config)
    return model


def train(folder: Path, case: str, processes: int) -> DualCoTTrainer:
    options = OPTIONS | CASES[case]
    rows = Dataset.from_list([row | {"id": f"{row['id']}{n}"} for n in range(4) for row in ROWS])
    lora = LoraConfig(target_modules="all-linear", r=4, lora_dropout=0.0) if case == "lora" else None

    def trainer(**more) -> DualCoTTrainer:
        return DualCoTTrainer(
            student(case),
            args=config(folder, **options | more),
            train_dataset=rows,
            processing_class=byte_level_tokenizer(),
            peft_config=lora,
        )

    if case == "tokens":
        batches = len(trainer().get_train_dataloader())
        trained = trainer(gradient_accumulation_steps=batches)
    else:
        trained = trainer(per_device_train_batch_size=4 // processes)
    trained.train()
    return trained


def summary(trainer: DualCoTTrainer) -> dict:
    keys = ("loss", "logps/chosen", "key_accuracy", "fork/confidence", "num_tokens")
    logs = [{key: float(entry[key]) for key in keys} for entry in trainer.state.log_history if "loss" in entry]
    keys = ("eval_loss", "eval_loss/chosen", "eval_key_accuracy", "eval_fork/confidence")
    logs += [
        {key: float(entry[key]) for key in keys} for entry in trainer.state.log_history if "eval_loss/chosen" in entry
    ]
    weights = [p.detach() for p in trainer.model.parameters()]
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in weights]
    return {
        "logs": logs,
        "weights": torch.cat([p.flatten() for p in whole]).tolist(),
        "sharded": sum(isinstance(p, DTensor) for p in weights),
    }


def uneven(folder: Path, case: str, processes: int) -> DualCoTTrainer:
    """Rows that do not come out even, over whole epochs.

    seven: batches of two pairs a step; in the last step of an epoch one process of two has a pair and the
    other none. one: a step for which there is one pair. dropped: of the rows that the first process would
    have, two are too long and are dropped.
    """
    rows = [row | {"id": f"{row['id']}{n}"} for n in range(2) for row in ROWS]
    rows = {"seven": rows[:7], "one": rows[:1], "dropped": rows}[case]
    if case == "dropped":
        for place in (0, 2):
            rows[place]["chosen"] += " and so on" * 100
    options = OPTIONS | {"layout": "tree", "num_train_epochs": 2, "max_steps": -1, "logging_steps": 1}
    options |= {"max_length": 300, "eval_strategy": "epoch", "train_sampling_strategy": "sequential"}
    trainer = DualCoTTrainer(
        tiny_llama(),
        args=config(folder, **options, per_device_train_batch_size=2 // processes),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(ROWS[:3]),
        processing_class=byte_level_tokenizer(),
    )
    trainer.train()
    return trainer


UNEVEN = ("seven", "one", "dropped")


def launch(folder: Path, kind: str) -> dict[str, dict]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | (FSDP2 | {"ACCELERATE_USE_FSDP": "true"} if kind == "fsdp2" else {})
    run = subprocess.run(
        [*command, __file__, str(folder), kind],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> dict[str, dict]:
    return launch(tmp_path_factory.mktemp("two"), "ddp")


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory) -> dict[str, dict]:
    return launch(tmp_path_factory.mktemp("shards"), "fsdp2")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("one")
    return {case: summary(train(folder, case, processes=1)) for case in CASES}


def same(two: dict, one: dict, steps: int = 2) -> None:
    assert len(one["logs"]) == len(two["logs"]) == steps
    for ours, theirs in zip(one["logs"], two["logs"], strict=True):
        assert ours == pytest.approx(theirs, rel=LOG_TOLERANCE)
    torch.testing.assert_close(torch.tensor(two["weights"]), torch.tensor(one["weights"]))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(case, two_processes, one_process):
    same(two_processes[case], one_process[case])


@pytest.mark.parametrize("case", SHARDED)
def test_two_shards_train_as_one_process_does(case, two_shards, one_process):
    """FSDP2, the head called outside of its own forward included: TRL's fused one reads its weight."""
    assert two_shards[case]["sharded"] > 20 - (case == "padded")
    same(two_shards[case], one_process[case])


@pytest.mark.parametrize("case", UNEVEN)
def test_batches_that_do_not_come_out_even(tmp_path, case, two_processes):
    """No process waits for one that has no pair, and none counts for more."""
    two, one = two_processes[case], summary(uneven(tmp_path, case, processes=1))
    # Steps of two epochs, and two evaluations, of three pairs each.
    assert len(one["logs"]) == {"seven": 8, "one": 2, "dropped": 6}[case] + 2
    same(two, one, len(one["logs"]))


def shard_on_a_cpu() -> None:
    """See the top of this file."""
    initialise = accelerate.state.AcceleratorState.__init__

    def and_then_shard(self, *args, **options) -> None:
        initialise(self, *args, **options)
        plugin = options.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = and_then_shard


if __name__ == "__main__":
    output, kind = Path(sys.argv[1]), sys.argv[2]
    if kind == "fsdp2":
        shard_on_a_cpu()
    results = {}
    for name in SHARDED if kind == "fsdp2" else (*CASES, *UNEVEN):
        trained = (uneven if name in UNEVEN else train)(output, name, processes=2)
        results[name] = summary(trained)
    if trained.is_world_process_zero():
        (output / "result.json").write_text(json.dumps(results))
