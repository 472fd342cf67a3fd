"""Measures how well the final answers of responses are read and compared.

    python benchmarks/answer_quality.py [--data ../shared/data] [--show]

Prints how many of the hand-written cases of answer_cases.yaml get the right verdict, by type of answer. With `--data`,
it also reads recorded responses in bulk:

BBH         recorded responses whose exact match with the known answer is recorded too
GSM8K       rationales with the known answer, in each way of writing thousands, in three forms: after ####, followed
            by a heading, and below a heading
PRMBench    chains in which a number is found; a fragment is a number that is a part of a larger expression

and counts how many answers one core reads in a minute. The last line is one JSON object.
"""

import argparse
import json
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from machine import cpu_name

import edit_trl
from edit_trl import check_answer
from edit_trl.common.tables import aligned
from edit_trl.data.answers import VERIFIER_VERSION, extract_answer

CASES = Path(__file__).with_name("answer_cases.yaml")
THOUSANDS = {
    "12,000": ",",
    "12 000": " ",
    "12\\,000": "\\,",
    "12{,}000": "{,}",
    "12'000": "'",
    "12_000": "_",
    "12\u202f000": "\u202f",
}
FORMS = (
    "{chain}\n#### {answer}",
    "{chain}\nThe answer is {answer}.\n\n#### 2. Verification\n\nIt fits.",
    "#### Step 1: solve\n\n{chain}\n\n### Final Answer\n\n**{answer}**",
)
# What stands around a number that is only a part of an expression; the reader has other, finer rules.
_BEFORE = re.compile(r"(?:\\(?:sqrt|pm|le|ge|log|frac|pi)|[\^_<>√±]|[A-Za-z)]\s?[-+*/])\s?[{(]*\Z")
_AFTER = re.compile(r"[$)}\]]*(?:\s?(?:\\(?:sqrt|pi|frac|cdot|times)|[\^√π])|[A-Za-z_!]|\s?[-+*/]\s?[\\\w(])")


@dataclass
class Count:
    """How many of some cases are right, and the others with what was found."""

    cases: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, is_right: bool, failure: str) -> None:
        """Count a case."""
        self.cases += 1
        if not is_right:
            self.failures.append(failure)

    @property
    def right(self) -> int:
        """Number of cases that are right."""
        return self.cases - len(self.failures)


def read_cases() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the group, the response, the known answer, its type and the verdict of each hand-written case."""
    for group, cases in yaml.safe_load(CASES.read_text(encoding="utf-8")).items():
        for case in cases:
            response, answer, kind, verdict = case if group == "lenient" else (*case[:2], group, case[2])
            yield group, response, answer, kind, verdict


def count_cases() -> dict[str, Count]:
    """Judge the hand-written cases, by type of answer; those of type `math` only where math-verify is installed."""
    counts: dict[str, Count] = {}
    for group, response, answer, kind, verdict in read_cases():
        if kind != "math" or find_spec("math_verify"):
            check = check_answer(response, answer, kind, lenient=group == "lenient")
            failure = f"{response!r}, known {answer!r}: {check.verdict} ({check.value!r}) instead of {verdict}"
            counts.setdefault(group, Count()).add(check.verdict == verdict, failure)
    return counts


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON Lines file."""
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def count_bbh(data: Path) -> Count:
    """Compare verdicts on recorded responses with the recorded exact match."""
    count = Count()
    for row in read_rows(data / "bbh" / "train.jsonl"):
        kind = "list" if row["task"] == "word_sorting" else None
        verdict = check_answer(row["teacher_response"], row["answer"], kind).verdict
        count.add((verdict == "correct") == row["teacher_correct"], f"{row['task']}: {row['teacher_response'][-80:]!r}")
    return count


def grouped(number: str, separator: str) -> str:
    """Write an integer with a separator between thousands."""
    return re.sub(r"(?<=\d)(?=(?:\d{3})+\Z)", lambda _: separator, number)


def count_gsm8k(data: Path, every: int = 1) -> dict[str, Count]:
    """Read known answers after their rationales, by way of writing thousands; `every` takes a part of the rows."""
    counts = {written: Count() for written in THOUSANDS}
    for row in islice(read_rows(data / "gsm8k" / "train.jsonl"), None, None, every):
        for written, separator in THOUSANDS.items():
            answer = grouped(row["answer"], separator)
            responses = [form.format(chain=row["rationale"], answer=answer) for form in FORMS]
            values = [check_answer(response, row["answer"], "number").value for response in responses]
            counts[written].add(values == [row["answer"]] * len(FORMS), f"{row['rationale'][-60:]!r}: {values}")
    return counts


def count_fragments(data: Path) -> Count:
    """Count the chains in which the number that is found is a part of a larger expression."""
    count = Count()
    for row in read_rows(data / "key_steps" / "prmbench_dev.jsonl"):
        for steps in (row["correct_steps"], row["wrong_steps"]):
            chain = "\n".join(steps)
            number = extract_answer(chain, "number")
            if number is not None:
                is_part = _BEFORE.search(chain[: number.start]) or _AFTER.match(chain, number.end)
                place = chain[max(0, number.start - 40) : number.end + 20]
                count.add(not is_part, f"{number.value} in {place!r}")
    return count


def table(counts: dict[str, Count]) -> str:
    """Format counts as a table."""
    rows = [
        [name, str(count.right), str(count.cases), f"{count.right / count.cases:.1%}"] for name, count in counts.items()
    ]
    return aligned([[["", "right", "of", "share"]], rows])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with bbh/, gsm8k/ and key_steps/, for the checks in bulk")
    parser.add_argument("--show", action="store_true", help="print every case that is not right")
    arguments = parser.parse_args()
    results = {"cases": count_cases()}
    per_minute = None
    if arguments.data:
        started = time.process_time()
        results["bulk"] = {"BBH": count_bbh(arguments.data)} | {
            f"GSM8K, {name}": count for name, count in count_gsm8k(arguments.data).items()
        }
        read = sum(count.cases * (1 if name == "BBH" else len(FORMS)) for name, count in results["bulk"].items())
        per_minute = round(60 * read / (time.process_time() - started))
        results["bulk"]["PRMBench, no fragment"] = count_fragments(arguments.data)
    for counts in results.values():
        print(table(counts), end="\n\n")
        for name, count in counts.items():
            for failure in count.failures if arguments.show else ():
                print(f"{name}: {failure}")
    if per_minute:
        print(f"{per_minute:,} answers a minute on one core\n")
    figures = {
        kind: {name: [count.right, count.cases] for name, count in counts.items()} for kind, counts in results.items()
    }
    versions = {"edit_trl": edit_trl.__version__, "verifier": VERIFIER_VERSION, "python": platform.python_version()}
    print(json.dumps(figures | {"answers_per_minute": per_minute, "versions": versions, "cpu": cpu_name()}))


if __name__ == "__main__":
    main()
