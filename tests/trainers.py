"""A `DualCoTTrainer` for a tiny student."""

from conftest import ROWS, tiny_llama
from datasets import Dataset
from peft import LoraConfig
from test_invariants import config

from edit_trl import DualCoTTrainer

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


def make_trainer(tmp_path, tokenizer, model=None, rows=ROWS, peft_config=None, eval_rows=None, **options):
    return DualCoTTrainer(
        model or tiny_llama(),
        args=config(tmp_path, **options),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(eval_rows) if eval_rows else None,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
