"""The card of generated data: of a teacher's pairs and of the student's own."""

from collections import Counter

import yaml

from edit_trl.models.chat.dispatch import DispatchStats
from edit_trl.teachers.card import Provenance, generation_card
from edit_trl.teachers.generation import DUAL, WARM_UP, Generation, Pivot

EVIL = "<script>`x` | **y**\n# z"


def card(generation: Generation, teacher: str = "some/teacher", role: str = "teacher", **columns) -> str:
    row = {"source": "pivot", "task": "sums", "mistake": None, **columns}
    stats = DispatchStats(prompt_tokens=10, completion_tokens=60, cost=0.25, models=Counter([teacher]))
    provenance = Provenance(teacher, {role: stats}, {"annotate": "abc"}, {"seed": 1})
    return generation_card(generation, provenance, {DUAL: [row, row], WARM_UP: [row]})


def test_a_teachers_card():
    counts = {"annotate": Counter(wrong=2, correct=3)}
    made = card(Generation(counts=counts, dropped={"too long": ["a", "b"]}), mistake=["slip", "sign"])
    assert yaml.safe_load(made.split("---\n")[1])["configs"][0] == {
        "config_name": "dual",
        "data_files": "dual.parquet",
        "default": True,
    }
    assert "by the teacher `some/teacher`." in made
    assert "`dual.parquet` has 2 pairs, `warm_up.parquet` 1 correct chains" in made
    assert "| mistake | pairs |\n| --- | --- |\n| sign | 2 |\n| slip | 2 |\n" in made
    assert "| annotate | correct | 3 |\n| annotate | wrong | 2 |\n" in made
    assert "| dropped pairs | pairs |\n| --- | --- |\n| too long | 2 |\n" in made
    assert "| teacher | 10 | 60 | 0.2500 | `some/teacher` |\n" in made
    assert "Versions of the prompt templates: annotate `abc`." in made
    assert '```json\n{\n  "seed": 1\n}\n```\n' in made
    assert "Pivotal steps" not in made


def test_a_students_card_tells_what_its_rollouts_found():
    counts = {"samples": Counter(correct=6, wrong=2), "pivot": Counter(correct=5, wrong=10)}
    pivots = [Pivot("a", 10, 12, 3, 4, 0, 4), Pivot("b", 2, 12, 1, 4, 1, 4)]
    made = card(Generation(counts=counts, dropped={"every sample is right": ["c"]}, pivots=pivots), role="student")
    assert "by the student itself, `some/teacher`." in made
    assert "Of 8 samples 6 were right and 2 wrong. 15 rollouts found 2 pivotal steps: 7.5 rollouts and 30 " in made
    assert "before the step 50% are right, from after it 12.5%." in made
    assert "| pivotal step | pairs |\n| --- | --- |\n| 2 of 12 | 1 |\n| 10 of 12 | 1 |\n" in made
    assert "| dropped questions and pairs | pairs |\n" in made


def test_names_are_no_markup():
    made = card(Generation(counts={EVIL: Counter([EVIL])}, dropped={EVIL: ["a"]}), EVIL, task=EVIL, source=EVIL)
    shown = "&#60;script&#62;&#96;x&#96; &#124; &#42;&#42;y&#42;&#42; &#35; z"
    assert made.count(f"| {shown} |") == 4  # source, task, stage with its outcome, reason
    assert made.count("`<script>'x' ¦ **y** # z`") == 2
    assert "\n# z" not in made
