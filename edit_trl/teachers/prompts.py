"""Fills in the prompt templates and reads the answers to them.

A template is a text file with {placeholders} in `templates/`; a file of your own may replace any of them. Its
version is a hash of its text, which is part of the journal's keys and of the dataset card, so that another
wording is another request.

The prompts follow the paper (arXiv 2405.19737): `annotate` extracts a chain (CEP), `rectify` hints at the
answer (AHP), `corrupt` shows contrastive pairs (CCP). The wording is our own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from edit_trl.common.errors import InputError
from edit_trl.common.options import nearest
from edit_trl.common.templates import read_template, template_problems
from edit_trl.common.thoughts import split_thoughts
from edit_trl.data.answers import AnswerType, extract_answer
from edit_trl.data.exemplars import Exemplar
from edit_trl.data.questions import Question

TemplateName = Literal[
    "annotate",
    "rectify",
    "rectify_minimal",
    "corrupt",
    "conclude",
    "judge",
    "label",
    "label_steps",
    "critique",
    "student",
]

LabelSet = Literal["paper", "fine"]

PLACEHOLDERS: dict[TemplateName, frozenset[str]] = {
    "annotate": frozenset({"task_description", "exemplars", "question"}),
    "rectify": frozenset({"task_description", "exemplars", "question", "answer"}),
    "rectify_minimal": frozenset({"question", "answer", "chain"}),
    "corrupt": frozenset({"task_description", "exemplars", "question", "chain"}),
    "conclude": frozenset({"task_description", "question", "chain"}),
    "judge": frozenset({"question", "chain"}),
    "label": frozenset({"kinds", "question", "chosen", "rejected"}),
    "label_steps": frozenset({"question", "chosen", "steps"}),
    "critique": frozenset({"question", "chain"}),
    "student": frozenset({"question"}),
}

KINDS: dict[LabelSet, dict[str, str]] = {
    # The paper's four.
    "paper": {
        "logical": "a step does not follow from those before it",
        "knowledge": "a fact of the world is wrong",
        "calculation": "an arithmetic or counting result is wrong",
        "other": "anything else",
    },
    "fine": {
        "calculation": "an arithmetic result is wrong",
        "counting": "things are miscounted",
        "operator": "the wrong operation is applied",
        "context value": "a value of the question is misread",
        "previous-step value": "a value of an earlier step is miscopied",
        "formula/knowledge": "a formula or fact of the world is wrong",
        "unit": "units are mixed up or wrongly converted",
        "missing step": "a step that is needed is left out",
        "irrelevant": "a step uses what does not matter",
        "contradiction": "a step contradicts an earlier one",
        "circular": "a step assumes what it should show",
        "counterfactual": "a step goes against what the question states",
        "other": "anything else",
    },
}

# How an exemplar is written; the other templates have none.
_EXEMPLARS: dict[TemplateName, str] = dict.fromkeys(PLACEHOLDERS, "") | {
    "annotate": "Question: {e.question}\nAnswer: Let's think step by step. {e.chain}\n\n",
    "rectify": "Question: {e.question}\nHint: the right answer is {e.answer}.\n"
    "Answer: Let's think step by step. {e.chain}\n\n",
    "corrupt": "Question: {e.question}\nRight reasoning: {e.chain}\nWrong reasoning: {e.wrong_chain}\n\n",
}

WITH_THOUGHTS = "Write the reasoning between <think> and </think>, and the answer after it.\n\n"
"""Comes before a prompt that asks to rewrite or replace a chain with thoughts."""

_KINDS_LINE = re.compile(r"^[\s*_]*kinds?[\s*_]*:(?P<names>.*)$", re.IGNORECASE | re.MULTILINE)

_STEPS_LINE = re.compile(r"^[\s*_]*steps?[\s*_]*:(?P<numbers>.*)$", re.IGNORECASE | re.MULTILINE)

_VERDICT_LINE = re.compile(r"^[\s*_]*verdict[\s*_]*:[\s*_]*(?P<verdict>\w+)", re.IGNORECASE | re.MULTILINE)


class Critique(NamedTuple):
    """What an answer says about a chain, without its verdict, and whether it finds a mistake."""

    text: str
    finds_a_mistake: bool


@dataclass(frozen=True)
class Templates:
    """The prompt templates of a run, by name."""

    texts: Mapping[TemplateName, str]

    @classmethod
    def load(cls, files: Mapping[str, str | Path] | None = None) -> Templates:
        """Load the package's templates, some of them replaced by `files` (template name -> text file).

        Raises:
            InputError: Unknown names, unknown or missing placeholders, and files that cannot be read; all at once.
        """
        names: tuple[Any, ...] = get_args(TemplateName)
        texts = {name: read_template(resources.files(__package__) / "templates" / f"{name}.txt") for name in names}
        errors = []
        replaced: Mapping[Any, str | Path] = files or {}
        for name, file in replaced.items():
            if name not in names:
                choices = ", ".join(names)
                errors.append(f"`templates`: unknown template {name!r}{nearest(name, names)}; choose from {choices}")
                continue
            try:
                texts[name] = read_template(Path(file))
            except (OSError, UnicodeDecodeError) as error:
                errors.append(f"cannot read the template {file}: {error}")
                continue
            errors += [f"{file}: {error}" for error in template_problems(texts[name], PLACEHOLDERS[name])]
        if errors:
            raise InputError(errors)
        return cls(texts)

    def version(self, name: TemplateName) -> str:
        """Return a hash of the template's text."""
        return hashlib.sha256(self.texts[name].encode()).hexdigest()[:12]

    def fill(self, name: TemplateName, question: Question, exemplars: Iterable[Exemplar] = (), **values: str) -> str:
        """Return a prompt. The known answer is only in the prompts whose `PLACEHOLDERS` include it.

        Args:
            name: The template.
            question: The question, with its answer and the description of its task.
            exemplars: Worked examples; those for `corrupt` have a wrong chain.
            values: The other placeholders: the `chain`, or the `chosen` and `rejected` chains, the `kinds` of
                mistake or the numbered `steps`. Those that the template does not have are ignored.
        """
        description = question.task_description
        values |= {
            "question": question.question,
            "answer": question.answer,
            "task_description": f"{description.strip()}\n" if description else "",
            "exemplars": "".join(_EXEMPLARS[name].format(e=exemplar) for exemplar in exemplars),
        }
        # One pass, so that braces in a question or a chain stay text.
        return self.texts[name].format(**{key: values[key] for key in PLACEHOLDERS[name]})


def read_chain(text: str) -> str:
    """Return the chain in an answer, without thoughts; it is what is graded.

    Removes thoughts (all of the text where they never end), words of the prompt that the model repeats, and
    further questions that it writes after the chain.
    """
    chain = split_thoughts(text).answer or ""
    for echo in ("Answer:", "Mended reasoning:", "Wrong reasoning:", "Let's think step by step."):
        chain = chain.removeprefix(echo).lstrip()
    return re.split(r"\n\s*(?:Question|Right reasoning|Wrong reasoning|Hint):", chain, maxsplit=1)[0].rstrip()


def without_conclusion(chain: str, answer_type: AnswerType) -> str:
    """Return a chain up to the sentence that first states its final answer.

    Of a chain that begins with its answer and then gives reasons, nothing is left. Thoughts lose their markers, since
    they may state the answer too.
    """
    if thoughts := split_thoughts(chain).thoughts:
        chain = f"{thoughts}\n\n{read_chain(chain)}"
    final = answer = extract_answer(chain, answer_type)
    while final is not None and answer is not None and answer.value == final.value:
        ends = [match.end() for match in re.finditer(r"[.!?]\s+|\n", chain[: answer.start])]
        chain = chain[: ends[-1]].rstrip() if ends else ""
        answer = extract_answer(chain, answer_type)
    return chain


def read_verdict(text: str) -> bool | None:
    """Return whether the answer calls a chain sound; None where it does not have the required form."""
    verdicts = _VERDICT_LINE.findall(split_thoughts(text).answer or "")
    return {"sound": True, "flawed": False}.get(verdicts[-1].lower()) if verdicts else None


def listed_kinds(kinds: LabelSet) -> str:
    """Return the list of the kinds of mistake for the `label` prompt."""
    return "\n".join(f"- {name}: {meaning}" for name, meaning in KINDS[kinds].items())


def read_kinds(text: str, kinds: LabelSet) -> list[str] | None:
    """Return the kinds of mistake that an answer names; None where it does not have the required form.

    An answer with a name outside the set is not used at all.
    """
    lines = [match["names"] for match in _KINDS_LINE.finditer(split_thoughts(text).answer or "")]
    if not lines:
        return None
    names = [name.strip(" .*_`\"'").lower() for name in lines[-1].split(",")]
    if not all(name in KINDS[kinds] for name in names):
        return None
    return [kind for kind in KINDS[kinds] if kind in names]


def read_steps(text: str, count: int) -> list[int] | None:
    """Return the sorted numbers of the steps that an answer names, from 1 to `count`; None in another form."""
    lines = [match["numbers"] for match in _STEPS_LINE.finditer(split_thoughts(text).answer or "")]
    if not lines:
        return None
    words = [word.strip(" .*_`\"'") for word in lines[-1].split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        return None
    numbers = sorted({int(word) for word in words})
    return numbers if numbers[0] >= 1 and numbers[-1] <= count else None


def read_critique(text: str) -> Critique | None:
    """Return a critique; None where it has no verdict on its last line, or says nothing before it."""
    answer = (split_thoughts(text).answer or "").strip()
    critique, _, last = answer.rpartition("\n")
    verdict = _VERDICT_LINE.fullmatch(last.strip(" .!*_`"))
    found = {"wrong": True, "right": False}.get(verdict["verdict"].lower()) if verdict else None
    return None if found is None or not critique.strip() else Critique(critique.strip(), found)
