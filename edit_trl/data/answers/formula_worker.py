"""Compares formulas by math-verify; run as a program by `formulas.py`, and imports nothing of the package.

Reads requests as lines of JSON, and answers each with one line: ["value", formula] with the formula in one spelling or
null, ["equal", known, said] with a boolean. A formula may fill the memory or never end (9^{9^{9^9}}), inside a single
operation that Python cannot interrupt, so the system ends this process after its share of time or memory.
"""

import json
import os
import sys
from typing import Any

SECONDS, MEMORY = 5, 4 << 30
"""Processor time for a request, and the most memory; the process is ended beyond them."""


def main() -> None:
    """Answer requests until the input ends."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import math_verify  # noqa: F401 - takes seconds, before the time of the first request begins

    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        _limit()
        task, *formulas = json.loads(line)
        print(json.dumps(_value(*formulas) if task == "value" else _equal(*formulas)), file=answers, flush=True)


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows; the parent ends this process
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = {
        resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime) + SECONDS,
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_CORE: 0,  # no file for a process that was ended
    }
    for name, limit in limits.items():
        _, most = resource.getrlimit(name)
        resource.setrlimit(name, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _parse(formula: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # LaTeX only: the other reader of math-verify evaluates text as Python.
    reader = LatexExtractionConfig(boxed_match_priority=0)
    return parse(f"\\boxed{{{formula}}}", [reader], fallback_mode="no_fallback", parsing_timeout=None)


def _value(formula: str) -> str | None:
    from sympy import Eq, nsimplify

    parsed = _parse(formula)
    if not parsed:
        return None
    expression = parsed[0]
    if isinstance(expression, Eq) and expression.lhs.is_Symbol:
        expression = expression.rhs
    try:
        if not _is_huge(expression):
            expression = expression.doit()
            expression = nsimplify(expression, rational=True) if expression.is_number else expression
    except Exception:  # sympy raises anything at all for what it cannot compute; the formula as it stands will do
        pass
    return str(expression)


def _is_huge(expression: Any) -> bool:
    """Whether computing a formula would make a number of thousands of digits."""
    from sympy import Pow, factorial

    powers = [power.exp for power in expression.atoms(Pow) if power.base.is_number and power.exp.is_number]
    return any(not part.is_Rational or abs(part) > 1_000 for part in powers) or any(
        not function.args[0].is_Symbol and not (function.args[0].is_Integer and function.args[0] <= 1_000)
        for function in expression.atoms(factorial)
    )


def _equal(known: str, said: str) -> bool:
    from math_verify import verify

    sides = _parse(known), _parse(said)
    if any(_is_huge(expression) for side in sides for expression in side):
        return str(sides[0]) == str(sides[1])
    return verify(*sides, allow_set_relation_comp=True, timeout_seconds=None)


if __name__ == "__main__":
    main()
