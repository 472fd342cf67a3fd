"""What is launched, and what is refused before it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROWS
from safetensors.torch import load_file

from edit_trl.cli.launch_options import launch_options, shards
from edit_trl.cli.main import main
from edit_trl.common.errors import InputError

ACCELERATE = Path(__file__).parents[2] / "recipes" / "accelerate"


@pytest.fixture
def gpus(monkeypatch):
    """As if the machine had this many."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")  # put back afterwards

    def set_count(count: int) -> None:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)

    return set_count


def refused(*arguments) -> str:
    with pytest.raises(InputError) as caught:
        launch_options(*arguments)
    return str(caught.value)


def test_more_gpus_asked_than_present(gpus):
    gpus(2)
    assert "--multi_gpu" in launch_options(None, 2, None, [])
    assert "4 GPUs asked for by --num_processes, but this machine has 2" in refused(None, 4, None, [])
    assert "8 GPUs asked for" in refused(ACCELERATE / "fsdp2.yaml", 8, None, [])
    launch_options(ACCELERATE / "zero3.yaml", 2, None, [])
    gpus(0)
    message = refused(ACCELERATE / "ddp.yaml", None, None, [])
    assert "2 GPUs asked for by" in message
    assert "this machine has none" in message
    assert "--accelerate_config cpu" in message


def test_more_than_the_named_ones(gpus, tmp_path):
    gpus(4)
    file = tmp_path / "two.yaml"
    file.write_text((ACCELERATE / "ddp.yaml").read_text().replace("gpu_ids: all", "gpu_ids: 0,1"))
    launch_options(file, None, None, [])
    assert "3 GPUs asked for" in refused(file, 3, None, [])


def test_several_nodes_have_their_gpus_each(gpus, tmp_path):
    gpus(4)
    file = tmp_path / "nodes.yaml"
    text = (ACCELERATE / "ddp.yaml").read_text()
    nodes = text.replace("num_machines: 1", "num_machines: 2").replace("processes: 2", "processes: 8")
    file.write_text(nodes)
    assert "several machines need `main_process_ip`" in refused(file, None, None, [])
    file.write_text(f"{nodes}main_process_ip: node1\n")
    assert launch_options(file, None, None, [])[:2] == ["--config_file", str(file)]
    file.write_text(text.replace("num_processes: 2", "num_processes: two"))
    assert "`num_processes: 'two'`: expected a whole number" in refused(file, None, None, [])


@pytest.mark.parametrize("options", [["--use_cpu", "true"], ["--use_cpu=true"], ["--use_cpu"]])
def test_processes_on_the_cpu(gpus, options):
    gpus(2)
    chosen = launch_options(None, 2, None, options)
    assert "--multi_gpu" in chosen  # what accelerate calls its launcher of several processes
    assert os.environ["ACCELERATE_USE_CPU"] == "true"
    assert "--multi_gpu" not in launch_options(None, 1, None, options)


@pytest.mark.parametrize(("name", "kind"), [("fsdp2", "FSDP"), ("zero2", "DeepSpeed"), ("zero3", "DeepSpeed")])
def test_nothing_is_sharded_on_a_cpu(gpus, tmp_path, name, kind):
    gpus(0)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("use_cpu: true\n")
    message = refused(ACCELERATE / f"{name}.yaml", None, str(recipe), [])
    assert f"asks for {kind}, which accelerate has for GPUs only" in message


def test_shards():
    assert shards(None, 4) == 1
    assert shards(ACCELERATE / "ddp.yaml", 4) == 1
    assert shards(ACCELERATE / "zero2.yaml", 4) == 1
    assert (shards(ACCELERATE / "zero3.yaml", 4), shards(ACCELERATE / "fsdp2.yaml", None)) == (4, 2)


def test_unknown_accelerate_config_names_those_there_are(capfd):
    recipe = ACCELERATE.parent / "SmolLM2-135M-Instruct" / "edit" / "config_lora.yaml"
    assert main(["train", "--config", str(recipe), "--accelerate_config", "fsdp3"]) == 2
    errors = capfd.readouterr().err
    assert "no accelerate configuration 'fsdp3'" in errors
    assert "cpu, ddp, fsdp2, single_gpu, zero2, zero3" in errors


# The real thing: three ways to launch two processes, on the CPU.

RECIPE = """
model_name_or_path: {student}
dataset_name: {data}
output_dir: {output}
per_device_train_batch_size: 1
max_steps: 2
optim: sgd
learning_rate: 0.1
lr_scheduler_type: constant
gradient_checkpointing: false
use_cpu: true
train_sampling_strategy: sequential
report_to: none
logging_steps: 1
save_strategy: "no"
"""
TRAIN = ["-m", "edit_trl.cli.train"]
CPU = str(ACCELERATE / "cpu.yaml")
TWO = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
LAUNCHES = {
    "edit-trl": ["-m", "edit_trl.cli.main", "train", "--accelerate_config", CPU, "--num_processes", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", *TWO.split(), "--main_process_port", "0", *TRAIN],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *TRAIN],
}


@pytest.fixture
def recipe(tmp_path, saved_student):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(student=saved_student, data=data, output=tmp_path / "out"))
    return path


def run(recipe, output, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *words, "--config", str(recipe), "--output_dir", str(output)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_every_launch_trains_as_one_process_does(recipe, tmp_path):
    alone = run(recipe, tmp_path / "alone", *TRAIN, "--per_device_train_batch_size", "2")
    assert alone.returncode == 0, alone.stderr[-3000:]
    expected = load_file(tmp_path / "alone" / "model.safetensors")
    for name, words in LAUNCHES.items():
        done = run(recipe, tmp_path / name, *words)
        assert done.returncode == 0, (name, done.stderr[-3000:])
        found = load_file(tmp_path / name / "model.safetensors")
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], msg=f"{name}: {key}")
        assert json.loads((tmp_path / name / "run.json").read_text())["finished"]


@pytest.mark.slow
def test_processes_that_would_train_alone_are_refused(recipe, tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("with a GPU, the processes find it")
    done = run(recipe, tmp_path / "out", *LAUNCHES["torchrun"], "--use_cpu", "false")
    assert done.returncode != 0
    assert "2 processes were launched, but there is no GPU for them" in done.stderr
    assert not (tmp_path / "out").exists()
    done = run(recipe, tmp_path / "out", *LAUNCHES["edit-trl"], "--lora_rr", "3")
    assert done.returncode == 2  # the processes' own code comes through


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distributed_type: 'NO'\nnum_processes: 0\n", "`num_processes` must be at least 1, got 0"),
        ("distributed_type: 'NO'\nnum_machines: -1\n", "`num_machines` must be at least 1, got -1"),
        ("distributed_type: 'NO'\nuse_cpu: maybe\n", "`use_cpu: 'maybe'`: expected true or false"),
        (
            "distributed_type: 'NO'\nmixed_precision: fp17\n",
            "expected one of no, fp16, bf16, fp8; did you mean 'fp16'?",
        ),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: 5\n", "`deepspeed_config: '5'`: expected a mapping"),
        ("distributed_type: SOME\n", "is no accelerate configuration: 'SOME' is not a valid DistributedType"),
        ("distributed_type: 'NO'\nprocesses: 2\n", "is no accelerate configuration: The config file at"),
        ("num_processes: 2\nnum_processes: 3\n", "line 2: 'num_processes' is given twice, first in line 1"),
        ("", "is empty; write options as `key: value`"),
    ],
)
def test_an_accelerate_configuration_that_is_none(gpus, tmp_path, text, message):
    gpus(4)
    file = tmp_path / "accelerate.yaml"
    file.write_text(text)
    found = refused(file, None, None, [])
    assert str(file) in found
    assert message in found


def test_words_of_an_accelerate_configuration(gpus, tmp_path):
    gpus(0)
    file = tmp_path / "accelerate.yaml"
    file.write_text("distributed_type: NO\nmixed_precision: no\nuse_cpu: yes\nnum_processes: 2\n")
    assert "--multi_gpu" in launch_options(file, None, None, [])
    file.write_text("distributed_type: NO\nmixed_precision: no\nuse_cpu: no\nnum_processes: 2\n")
    assert "2 GPUs asked for" in refused(file, None, None, [])


@pytest.mark.parametrize("count", ["0", "-1", "1000000000"])
def test_a_count_of_processes_out_of_range(capfd, count):
    assert main(["train", "--num_processes", count, "--use_cpu", "true"]) == 2
    assert f"--num_processes must be from 1 to 4096, got {count}" in capfd.readouterr().err
