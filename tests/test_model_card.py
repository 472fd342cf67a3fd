import yaml

from edit_trl import DualCoTConfig
from edit_trl.model_card import dual_cot_model_card
from edit_trl.tokenization import PreparationReport

LOG = [
    {"loss": 2.0, "logps/chosen": -2.0, "key_accuracy": 0.4, "step": 10},
    {"loss": 1.0, "logps/chosen": -1.0, "key_accuracy": 0.8, "step": 20},
    {"train_runtime": 5.0, "step": 20},
]


def card(tmp_path, **changes) -> str:
    arguments = {
        "config": DualCoTConfig(str(tmp_path), use_cpu=True, report_to="none", learning_rate=1e-4),
        "base_model": "someone/base",
        "adapter": True,
        "model_name": "student",
        "dataset_name": "someone/dual-cots",
        "tags": ["trl"],
        "reports": {"train": PreparationReport(4, 3, {"no key token": 1}, key_fraction=0.2)},
        "log_history": LOG,
    }
    return str(dual_cot_model_card(**(arguments | changes)))


def metadata(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_metadata(tmp_path):
    data = metadata(card(tmp_path))
    assert data["base_model"] == "someone/base"
    assert data["datasets"] == ["someone/dual-cots"]
    assert (data["library_name"], data["pipeline_tag"]) == ("peft", "text-generation")


def test_a_path_is_no_id(tmp_path):
    data = metadata(card(tmp_path, base_model=str(tmp_path), dataset_name=str(tmp_path)))
    assert "base_model" not in data
    assert "datasets" not in data


def test_body(tmp_path):
    text = card(tmp_path)
    assert "- train: 3 of 4 pairs kept; 1 dropped: no key token; key fraction 0.20" in text
    assert "| `chosen_key_weight` | 2.0 |" in text
    assert "| `preference_scope` | fork |" in text
    assert "| `lr_scheduler_type` | " in text
    assert "Last log, step 20:" in text
    assert "| `key_accuracy` | 0.8000 |" in text
    assert "AutoPeftModelForCausalLM" in text
    assert "arxiv.org/abs/2405.19737" in text


def test_full_model_and_no_logs(tmp_path):
    text = card(tmp_path, adapter=False, log_history=[], dataset_name=None)
    assert "from transformers import AutoModelForCausalLM" in text
    assert "Last log" not in text
    assert "datasets" not in metadata(text)
