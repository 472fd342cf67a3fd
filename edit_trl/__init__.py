"""edit_trl: distil reasoning into small models by learning from mistakes.

Each public name is imported from its module on first use, so `import edit_trl` is fast and imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_MODULE_OF = {
    "DualCoTConfig": "training.config",
    "DualCoTTrainer": "training.trainer",
    "DualCoTCollator": "models.pairs.collation",
    "train_recipe": "cli.train_recipe",
    "dual_cot_loss": "losses",
    "key_step_masks": "key_steps",
    "locate_key_steps": "key_steps",
    "KeySteps": "key_steps",
    "load_dual_cots": "data.dual_cots",
    "validate_dual_cots": "data.row_checks",
    "select_rows": "data.views",
    "check_answer": "data.answers",
    "generate_dual_cots": "data.procedural.teacher",
    "ProceduralTeacher": "data.procedural.teacher",
    "show_pairs": "cli.notebook",
    "evaluate_accuracy": "evaluation.accuracy.answering",
    "evaluate_suite": "evaluation.suite.evaluate_suite",
    "compare_runs": "evaluation.compare.comparison",
    "read_run": "evaluation.runs.folder",
    "show_report": "cli.notebook",
    "SuiteCallback": "evaluation.suite.callback",
    "AnswerAccuracy": "evaluation.accuracy.metric",
}

__all__ = [  # noqa: RUF022 (in the order of _MODULE_OF: training, data, evaluation)
    "DualCoTConfig",
    "DualCoTTrainer",
    "DualCoTCollator",
    "train_recipe",
    "dual_cot_loss",
    "key_step_masks",
    "locate_key_steps",
    "KeySteps",
    "load_dual_cots",
    "validate_dual_cots",
    "select_rows",
    "check_answer",
    "generate_dual_cots",
    "ProceduralTeacher",
    "show_pairs",
    "evaluate_accuracy",
    "evaluate_suite",
    "compare_runs",
    "read_run",
    "show_report",
    "SuiteCallback",
    "AnswerAccuracy",
]

if TYPE_CHECKING:
    from edit_trl.cli.notebook import show_pairs, show_report
    from edit_trl.cli.train_recipe import train_recipe
    from edit_trl.data.answers import check_answer
    from edit_trl.data.dual_cots import load_dual_cots
    from edit_trl.data.procedural.teacher import ProceduralTeacher, generate_dual_cots
    from edit_trl.data.row_checks import validate_dual_cots
    from edit_trl.data.views import select_rows
    from edit_trl.evaluation.accuracy.answering import evaluate_accuracy
    from edit_trl.evaluation.accuracy.metric import AnswerAccuracy
    from edit_trl.evaluation.compare.comparison import compare_runs
    from edit_trl.evaluation.runs.folder import read_run
    from edit_trl.evaluation.suite.callback import SuiteCallback
    from edit_trl.evaluation.suite.evaluate_suite import evaluate_suite
    from edit_trl.key_steps import KeySteps, key_step_masks, locate_key_steps
    from edit_trl.losses import dual_cot_loss
    from edit_trl.models.pairs.collation import DualCoTCollator
    from edit_trl.training.config import DualCoTConfig
    from edit_trl.training.trainer import DualCoTTrainer


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
