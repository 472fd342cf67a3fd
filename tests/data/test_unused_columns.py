import pytest

from edit_trl.data.row import OPTIONAL_COLUMNS, REQUIRED_COLUMNS
from edit_trl.data.unused_columns import unused_columns


@pytest.mark.parametrize(
    ("columns", "phrase"),
    [
        (["rating", "source_url"], "rating, source_url"),
        (["score", "question_id", "data_source", "tas"], "score, question_id, data_source, tas"),
        (["mistakes"], "mistakes (did you mean `mistake`?)"),
        (["mistakes", "mistake"], "mistakes"),
        (["Answer"], "Answer (did you mean `answer`?)"),
        (["rejected_key_span"], "rejected_key_span (did you mean `rejected_key_spans`?)"),
        (["rejcted-key-spans"], "rejcted-key-spans (did you mean `rejected_key_spans`?)"),
        (["chat_template_kwarg"], "chat_template_kwarg (did you mean `chat_template_kwargs`?)"),
        (["a\x1b[31m"], "'a\\x1b[31m'"),
        (["chosen_key_spans"], "chosen_key_spans (for `key_step_method: spans`)"),
    ],
)
def test_unused_columns_are_named(columns, phrase):
    assert unused_columns([*REQUIRED_COLUMNS, *columns], "words") == f"columns not used: {phrase}"


def test_columns_of_ours_are_not_named():
    assert unused_columns([*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS], "words") == ""
    assert unused_columns([*REQUIRED_COLUMNS, "chosen_key_spans"], "spans") == ""
    assert unused_columns([*REQUIRED_COLUMNS, "chosen_key_spans"]) == ""
