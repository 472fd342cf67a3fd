"""What a teacher is asked, and how its answers are read (L3).

A template is a plain text file with {placeholders}, in `templates/`; one's own file may stand in for any of
them. Its version is a hash of its text and goes into the journal's keys and the dataset card, so that another
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
from typing import Literal, get_args

from edit_trl.common.errors import InputError
from edit_trl.common.templates import read_template, template_problems, unknown_name
from edit_trl.data.answers import AnswerType, extract_answer
from edit_trl.data.exemplars import Exemplar
from edit_trl.data.questions import Question

TemplateName = Literal[
    "annotate", "rectify", "rectify_minimal", "corrupt", "conclude", "judge", "label", "student"
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

_KINDS_LINE = re.compile(r"^[\s*_]*kinds?[\s*_]*:(?P<names>.*)$", re.IGNORECASE | re.MULTILINE)

_VERDICT_LINE = re.compile(r"^[\s*_]*verdict[\s*_]*:[\s*_]*(?P<verdict>\w+)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Templates:
    """The prompt templates of a run, by name."""

    texts: Mapping[TemplateName, str]

    @classmethod
    def load(cls, files: Mapping[str, str | Path] | None = None) -> Templates:
        """The package's templates, with files in place of some.

        Args:
            files: Template name -> text file.

        Raises:
            InputError: A name or placeholder that does not exist, one that is missing, or a file that cannot
                be read; all at once.
        """
        names = get_args(TemplateName)
        texts = {
            name: read_template(resources.files(__package__) / "templates" / f"{name}.txt") for name in names
        }
        problems = []
        for name, file in (files or {}).items():
            if name not in names:
                problems.append(f"`templates: {name}`: {unknown_name(name, names)}")
                continue
            try:
                texts[name] = read_template(Path(file))
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"cannot read the template {file}: {error}")
                continue
            problems += [
                f"{file}: {problem}" for problem in template_problems(texts[name], PLACEHOLDERS[name])
            ]
        if problems:
            raise InputError(problems)
        return cls(texts)

    def version(self, name: TemplateName) -> str:
        """A hash of the template's text."""
        return hashlib.sha256(self.texts[name].encode()).hexdigest()[:12]

    def annotate(self, question: Question, exemplars: Iterable[Exemplar]) -> str:
        """Asks for a chain."""
        shown = "".join(
            f"Question: {e.question}\nAnswer: Let's think step by step. {e.chain}\n\n" for e in exemplars
        )
        return self._fill("annotate", question, exemplars=shown)

    def rectify(self, question: Question, exemplars: Iterable[Exemplar]) -> str:
        """Asks for a chain to the known answer; the exemplars carry the hint as well."""
        shown = "".join(
            f"Question: {e.question}\nHint: the right answer is {e.answer}.\n"
            f"Answer: Let's think step by step. {e.chain}\n\n"
            for e in exemplars
        )
        return self._fill("rectify", question, exemplars=shown, answer=question.answer)

    def rectify_minimal(self, question: Question, wrong_chain: str) -> str:
        """Asks to mend a wrong chain with as few changes as can be."""
        return self._fill("rectify_minimal", question, chain=wrong_chain, answer=question.answer)

    def corrupt(self, question: Question, chain: str, pairs: Iterable[Exemplar]) -> str:
        """Asks for a similar wrong chain; each exemplar has a wrong chain."""
        shown = "".join(
            f"Question: {e.question}\nRight reasoning: {e.chain}\nWrong reasoning: {e.wrong_chain}\n\n"
            for e in pairs
        )
        return self._fill("corrupt", question, exemplars=shown, chain=chain)

    def conclude(self, question: Question, beginning: str) -> str:
        """Asks what follows from a chain without its conclusion; says nothing of the known answer."""
        return self._fill("conclude", question, chain=beginning)

    def judge(self, question: Question, chain: str) -> str:
        """Asks whether a chain is sound; says nothing of the known answer."""
        return self._fill("judge", question, chain=chain)

    def label(self, question: Question, chosen: str, rejected: str, kinds: LabelSet) -> str:
        """Asks for the kinds of mistake of the wrong chain."""
        listed = "\n".join(f"- {name}: {meaning}" for name, meaning in KINDS[kinds].items())
        return self._fill("label", question, kinds=listed, chosen=chosen, rejected=rejected)

    def student(self, question: Question) -> str:
        """What a student is asked: the question as it will be trained on."""
        return self._fill("student", question)

    def _fill(self, name: TemplateName, question: Question, **values: str) -> str:
        description = question.task_description
        values |= {
            "question": question.question,
            "task_description": f"{description.strip()}\n" if description else "",
        }
        # One pass: braces in a question or a chain are text.
        return self.texts[name].format(**{key: values[key] for key in PLACEHOLDERS[name]})


def read_chain(text: str) -> str:
    """A chain as it goes into a row: without what the prompt's own words were echoed with.

    Also without the thoughts that some models write first in <think> tags, and without a question of its own
    that a teacher goes on with.
    """
    chain = text.rpartition("</think>")[2].strip()
    for echo in ("Answer:", "Mended reasoning:", "Wrong reasoning:", "Let's think step by step."):
        chain = chain.removeprefix(echo).lstrip()
    return re.split(r"\n\s*(?:Question|Right reasoning|Wrong reasoning|Hint):", chain, maxsplit=1)[0].rstrip()


def without_conclusion(chain: str, answer_type: AnswerType) -> str:
    """A chain up to the sentence that first states what it ends in.

    A chain that begins with its answer and then gives reasons has nothing to draw it from.
    """
    final = found = extract_answer(chain, answer_type)
    while found is not None and found.value == final.value:
        chain = _sentences_before(chain, found.start)
        found = extract_answer(chain, answer_type)
    return chain


def read_verdict(text: str) -> bool | None:
    """Whether a judge calls a chain sound; None where it does not say so in the form asked for."""
    found = _VERDICT_LINE.findall(text)
    return {"sound": True, "flawed": False}.get(found[-1].lower()) if found else None


def read_kinds(text: str, kinds: LabelSet) -> list[str] | None:
    """The kinds of mistake named in an answer; None where it is not in the form asked for.

    Every name must be one of the set: what is half understood is not used.
    """
    lines = [match["names"] for match in _KINDS_LINE.finditer(text)]
    if not lines:
        return None
    named = [name.strip(" .*_`\"'").lower() for name in lines[-1].split(",")]
    if not all(name in KINDS[kinds] for name in named):
        return None
    return [kind for kind in KINDS[kinds] if kind in named]


def _sentences_before(text: str, position: int) -> str:
    ends = [match.end() for match in re.finditer(r"[.!?]\s+|\n", text[:position])]
    return text[: ends[-1]].rstrip() if ends else ""
