import dataclasses

import pytest

from edit_trl import DualCoTConfig
from edit_trl.common.errors import InputError
from edit_trl.training.config import logger


def make(tmp_path, **options) -> DualCoTConfig:
    return DualCoTConfig(str(tmp_path), use_cpu=True, report_to="none", **options)


def test_defaults_are_gentle(tmp_path):
    config = make(tmp_path)
    assert (config.chosen_key_weight, config.chosen_context_weight) == (2.0, 1.0)
    assert config.rejected_key_weight == 0.0
    assert (config.preference_weight, config.preference_scope) == (0.1, "fork")
    assert config.reference == "none"


def test_every_field_of_ours_has_help():
    ours = [f for f in dataclasses.fields(DualCoTConfig) if f.name in DualCoTConfig.__annotations__]
    assert len(ours) == 29
    assert all(f.metadata["help"].endswith(".") for f in ours)


def test_round_trip_through_a_dict(tmp_path):
    for options in ({}, {"preference_weight": 0.0}, {"preference_scope": "completion"}):
        config = make(tmp_path, **options)
        again = DualCoTConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init})
        assert again.preference_scope == config.preference_scope


def test_bf16_follows_the_machine(tmp_path):
    assert DualCoTConfig(str(tmp_path), report_to="none").bf16 is False  # no GPU here
    assert make(tmp_path, bf16=True).bf16 is True  # asked for, on the CPU
    with pytest.raises(InputError, match="`bf16: true`, but this machine has no GPU with bfloat16"):
        DualCoTConfig(str(tmp_path), bf16=True)


BAD = [
    ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` must be at least 1, got 0"),
    ({"per_device_eval_batch_size": -1}, "`per_device_eval_batch_size` must be at least 1, got -1"),
    ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1, got 0"),
    ({"max_tokens_per_batch": 0}, "`max_tokens_per_batch` must be at least 1, got 0"),
    ({"chosen_key_weight": -1.0}, "`chosen_key_weight` must be a finite number, 0 or more, got -1.0"),
    ({"rejected_key_weight": float("nan")}, "`rejected_key_weight` must be a finite number"),
    ({"preference_weight": float("inf")}, "`preference_weight` must be a finite number"),
    (
        {"chosen_key_weight": 0.0, "chosen_context_weight": 0.0, "preference_weight": 0.0},
        "all weights of the objective are 0",
    ),
    ({"preference_weight": 0.0, "preference_scope": "fork"}, "there is no preference term"),
    ({"preference_weight": 0.0, "reference": "precomputed"}, "nothing else uses a reference"),
    ({"preference_loss": "ipo"}, "compares with a reference model, but `reference` is 'none'"),
    ({"preference_loss": "orpo", "reference": "adapter_off"}, "has no reference model"),
    ({"preference_loss": "simpo", "preference_reduction": "sum"}, "is defined on mean log-probabilities"),
    ({"preference_beta": 0.0}, "`preference_beta` must be a finite number above 0"),
    ({"max_key_fraction": 0.0}, "`max_key_fraction` must be above 0"),
    ({"max_key_fraction": 1.5}, "`max_key_fraction` must be above 0 and at most 1, got 1.5"),
    ({"max_fork_confidence": 2.0}, "`max_fork_confidence` must be above 0"),
    ({"hardest_forks": 0.0}, "`hardest_forks` must be above 0 and at most 1, got 0.0"),
    ({"hardest_forks": 50}, "`hardest_forks` must be above 0 and at most 1, got 50"),
    ({"lr_decay_per_epoch": 1.5, "lr_scheduler_type": "constant"}, "`lr_decay_per_epoch` must be above 0"),
    ({"lr_decay_per_epoch": 0.9}, "needs `lr_scheduler_type: constant`"),
    ({"max_length": 1}, "`max_length` must be at least 2"),
    ({"packing": True}, "`packing: True` does not apply to dual CoTs"),
    ({"padding_free": True}, "`padding_free: True` does not apply"),
    ({"loss_type": "dft"}, "`loss_type: dft` does not apply to dual CoTs; choose by `chosen_loss` (nll or dft)"),
    ({"chosen_loss": "dtf"}, "`chosen_loss: 'dtf'`: expected one of nll, dft"),
    ({"preference_loss": "apo_zero"}, "compares with a reference model, but `reference` is 'none'"),
    ({"dpop_lambda": 5.0}, "`dpop_lambda: 5.0` is for `preference_loss: dpop`"),
    ({"dpop_lambda": -1.0}, "`dpop_lambda` must be a finite number, 0 or more"),
    ({"assistant_only_loss": True}, "`assistant_only_loss: True` does not apply"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(InputError) as caught:
        make(tmp_path, **options)
    assert message in str(caught.value)


def test_all_problems_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        make(tmp_path, chosen_key_weight=-1.0, max_key_fraction=0.0, preference_loss="ipo", packing=True)
    assert len(caught.value.problems) == 4


def test_checkpoints_are_not_pushed(tmp_path):
    with pytest.raises(InputError, match="hub_strategy: all_checkpoints` would push checkpoints"):
        DualCoTConfig(str(tmp_path), hub_strategy="all_checkpoints")
    DualCoTConfig(str(tmp_path), hub_strategy="end", use_cpu=True)


def test_simpo_without_a_margin_is_told_to_be_sigmoid(tmp_path, caplog):
    logger.warning_once.cache_clear()
    make(tmp_path, preference_loss="simpo", preference_margin=0.5)
    assert caplog.messages == []
    make(tmp_path, preference_loss="simpo")
    [message] = caplog.messages
    assert "`preference_loss: simpo` without a margin equals `sigmoid`" in message
