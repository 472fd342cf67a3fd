"""Two processes (gloo, on the CPU) do what one does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROWS, byte_level_tokenizer, tiny_llama
from datasets import Dataset
from test_invariants import config

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
}


def train(folder: Path, case: str, processes: int) -> DualCoTTrainer:
    options = OPTIONS | CASES[case]
    rows = Dataset.from_list([row | {"id": f"{row['id']}{n}"} for n in range(4) for row in ROWS])

    def trainer(**more) -> DualCoTTrainer:
        return DualCoTTrainer(
            tiny_llama(),
            args=config(folder, **options | more),
            train_dataset=rows,
            processing_class=byte_level_tokenizer(),
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
    logs = [
        {key: float(entry[key]) for key in keys} for entry in trainer.state.log_history if "loss" in entry
    ]
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return {"logs": logs, "weights": weights.tolist()}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*command, __file__, str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(tmp_path, case, two_processes):
    two, one = two_processes[case], summary(train(tmp_path, case, processes=1))
    assert len(one["logs"]) == len(two["logs"]) == 2
    for ours, theirs in zip(one["logs"], two["logs"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    torch.testing.assert_close(torch.tensor(two["weights"]), torch.tensor(one["weights"]))


if __name__ == "__main__":
    output = Path(sys.argv[1])
    results = {}
    for name in CASES:
        trained = train(output, name, processes=2)
        results[name] = summary(trained)
    if trained.is_world_process_zero():
        (output / "result.json").write_text(json.dumps(results))
