"""Multi-step arithmetic and boolean expressions: trees that are evaluated step by step.

What is 7 + 4 * 3 - 8?
First, 4 * 3 = 12. Then 7 + 12 = 19. Then 19 - 8 = 11. Therefore, the answer is 11.

Is the following true or false? not (True and False) or False
First, True and False is False. Then not False is True. Then True or False is True.
Therefore, the answer is True.
"""

import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edit_trl.data.procedural.problems import Mistake, Problem, Slip, off_by

Value = int | bool

_STEP = 9  # pieces per step
_BINDING = {"or": 1, "and": 2, "+": 1, "-": 1, "*": 2}
_APPLY: dict[str, Callable[[Value, Value], Value]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "and": operator.and_,
    "or": operator.or_,
}
_ARITHMETIC_QUESTIONS = (
    "What is {expression}?",
    "Work out {expression}.",
    "Calculate {expression}.",
    "{expression} = ?",
    "Find the value of {expression}.",
)
_BOOLEAN_QUESTIONS = (
    "Is the following true or false? {expression}",
    "Evaluate: {expression}",
    "What is the value of {expression}?",
    "{expression} is",
    "Say whether this expression is True or False: {expression}",
)
_ARITHMETIC_MISTAKES: tuple[Mistake, ...] = (
    *("calculation", "context value", "operator", "previous-step value"),
    *("order of operations",) * 3,  # many trees have the same value without precedence
)
_BOOLEAN_MISTAKES: tuple[Mistake, ...] = (
    "calculation",
    *("context value", "operator", "missing step", "repeated step") * 2,
    *("order of operations",) * 6,  # most trees have the same value without precedence
)


@dataclass(frozen=True)
class Node:
    """An operation; `left` is None for "not"."""

    op: str
    left: "Node | Value | None"
    right: "Node | Value"


Tree = Node | Value


@dataclass
class _Working:
    """Evaluates a tree from the inside out and writes one step per operation."""

    slip: Slip | None = None
    equals: str = " = "
    pieces: list[str] = field(default_factory=list)
    steps: int = 0
    results: list[Value] = field(default_factory=list)

    def work_out(self, tree: Tree) -> Value:
        if not isinstance(tree, Node):
            return tree
        left = None if tree.left is None else self.work_out(tree.left)
        right = self.work_out(tree.right)
        here = self.slip if self.slip and self.slip.step == self.steps else None
        self.steps += 1
        if left is None:
            return self._negate(right, here)
        return self._combine(tree, left, right, here)

    def _negate(self, value: Value, here: Slip | None) -> Value:
        kind = here.kind if here else None
        times = 0 if kind == "missing step" else 2 if kind == "repeated step" else 1
        for turn in range(2):
            result = value if kind == "calculation" else not value
            self._write("", "not", value, result, blank=turn >= times)
            if turn < times:
                value = result
        return value

    def _combine(self, node: Node, left: Value, right: Value, here: Slip | None) -> Value:
        op, kind, delta = node.op, here.kind if here else None, here.delta if here else 0
        if kind == "operator":
            op = {"+": "-", "-": "+", "*": "+", "and": "or", "or": "and"}[op]
        if kind == "previous-step value":
            left, right = self._misquoted(node, left, right, delta)
        if kind == "context value":
            left, right = _misread(node, left, right, delta)
        result = _APPLY[op](left, right)
        if kind == "calculation":
            result = _slightly_off(result, delta)
        self._write(str(left), op, right, result)
        self.results.append(result)
        return result

    def _misquoted(self, node: Node, left: Value, right: Value, delta: int) -> tuple[Value, Value]:
        """Return the operands, one inner result replaced by another inner result or by a number close to it."""
        if isinstance(node.left, Node):
            return self._instead_of(left, delta), right
        if isinstance(node.right, Node):
            return left, self._instead_of(right, delta)
        return left, right

    def _instead_of(self, result: Value, delta: int) -> Value:
        others = [other for other in self.results if other != result]
        return others[-1] if others and delta > 0 else _slightly_off(result, delta)

    def _write(self, left: str, op: str, right: Value, result: Value, blank: bool = False) -> None:
        opening = "Then " if self.pieces else "First, "
        # A negative number after an operator is put in brackets: 5 - (-3).
        second = f"({right})" if right < 0 else str(right)
        gap = " " if left else ""
        start = " " if self.pieces else ""
        pieces = [start + opening, left, gap, op, " ", second, self.equals, str(result), "."]
        self.pieces += [""] * len(pieces) if blank else pieces


def make_arithmetic(rng: random.Random, difficulty: int) -> Problem | None:
    """Draw an arithmetic problem; None if the mistake does not show or a number is too large."""
    tree = _draw_tree(rng, 2 + difficulty, "++--**", lambda: rng.randint(2, 5 + 4 * difficulty))
    step, delta = rng.randrange(2 + difficulty), off_by(rng, 1, 2, 10)
    slip = Slip(rng.choice(_ARITHMETIC_MISTAKES), step, delta)
    right = _Working()
    right.work_out(tree)
    if max(map(abs, right.results)) > 200 * difficulty:
        return None
    return _problem(rng, tree, slip, " = ", _ARITHMETIC_QUESTIONS)


def make_boolean(rng: random.Random, difficulty: int) -> Problem | None:
    """Draw a boolean expression; None if the mistake does not change its value."""
    tree = _draw_tree(rng, 2 + difficulty, ("and", "or"), lambda: rng.random() < 0.5)
    for _ in range(1 + difficulty // 2):
        tree = _negated_somewhere(rng, tree)
    slip = Slip(rng.choice(_BOOLEAN_MISTAKES), rng.randrange(_count(tree)))
    return _problem(rng, tree, slip, " is ", _BOOLEAN_QUESTIONS)


def _problem(rng: random.Random, tree: Tree, slip: Slip, equals: str, questions: tuple[str, ...]) -> Problem | None:
    right, wrong = _Working(equals=equals), _Working(slip, equals)
    answer = right.work_out(tree)
    tokens = _tokens(tree)
    misread = slip.kind == "order of operations"
    wrong_answer = wrong.work_out(_left_to_right(list(tokens)) if misread else tree)
    if answer == wrong_answer or not wrong.pieces[0]:  # no chain starts with "Then"
        return None
    if misread and not _face_each_other(right.pieces, wrong.pieces):
        return None
    expression = " ".join(tokens).replace("( ", "(").replace(" )", ")")
    return Problem(
        question=rng.choice(questions).format(expression=expression),
        core=expression,
        right=right.pieces,
        wrong=wrong.pieces,
        answer=[str(answer)],
        wrong_answer=[str(wrong_answer)],
        mistake=slip.kind,
    )


def _face_each_other(right: list[str], wrong: list[str]) -> bool:
    """Return whether step i of one chain corresponds to step i of the other: each "not" faces a "not".

    The same sum must not be in both chains at different places, or shared text would be marked as key.
    Boolean steps may coincide, because there are few different ones.
    """
    if [*map(bool, right)] != [*map(bool, wrong)]:
        return False
    pairs = [(a, b) for a, b in zip(_steps(right), _steps(wrong), strict=True) if a != b]
    moved = {a for a, _ in pairs} & {b for _, b in pairs}
    return not any("=" in step for step in moved)


def _steps(pieces: list[str]) -> list[str]:
    """Return the steps, without "First" and "Then"."""
    return ["".join(pieces[i + 1 : i + _STEP]) for i in range(0, len(pieces), _STEP)]


def _draw_tree(rng: random.Random, operations: int, ops: Sequence[str], leaf: Callable[[], Value]) -> Tree:
    if operations == 0:
        return leaf()
    on_the_left = rng.randrange(operations)
    return Node(
        rng.choice(ops),
        _draw_tree(rng, on_the_left, ops, leaf),
        _draw_tree(rng, operations - 1 - on_the_left, ops, leaf),
    )


def _negated_somewhere(rng: random.Random, tree: Tree, negated: bool = False) -> Tree:
    """Return the tree with a "not" before a random part of it, but not next to another "not"."""
    if not isinstance(tree, Node):
        return tree if negated else Node("not", None, tree)
    if tree.left is None:
        return Node("not", None, _negated_somewhere(rng, tree.right, negated=True))
    if not negated and rng.random() < 0.3:
        return Node("not", None, tree)
    if rng.random() < 0.5:
        return Node(tree.op, _negated_somewhere(rng, tree.left), tree.right)
    return Node(tree.op, tree.left, _negated_somewhere(rng, tree.right))


def _count(tree: Tree | None) -> int:
    return 1 + _count(tree.left) + _count(tree.right) if isinstance(tree, Node) else 0


def _tokens(tree: Tree, binding: int = 0) -> list[str]:
    """Return the symbols of the expression, with the brackets it needs inside an operator of strength `binding`."""
    if not isinstance(tree, Node):
        return [str(tree)]
    if tree.left is None:
        return ["not", *_tokens(tree.right, binding=3)]
    own = _BINDING[tree.op]
    tokens = [*_tokens(tree.left, own - 1), tree.op, *_tokens(tree.right, own)]
    return ["(", *tokens, ")"] if own <= binding else tokens


def _left_to_right(tokens: list[str]) -> Tree:
    """Return the tree as read with brackets, but without operator precedence."""
    tree = _operand(tokens)
    while tokens and tokens[0] != ")":
        op = tokens.pop(0)
        tree = Node(op, tree, _operand(tokens))
    return tree


def _operand(tokens: list[str]) -> Tree:
    token = tokens.pop(0)
    if token == "not":
        return Node("not", None, _operand(tokens))
    if token == "(":
        inner = _left_to_right(tokens)
        tokens.pop(0)
        return inner
    return {"True": True, "False": False}[token] if token.isalpha() else int(token)


def _misread(node: Node, left: Value, right: Value, delta: int) -> tuple[Value, Value]:
    """Return the operands, one that the question itself gives misread."""
    if not isinstance(node.right, Node):
        return left, _slightly_off(right, delta)
    if not isinstance(node.left, Node):
        return _slightly_off(left, delta), right
    return left, right


def _slightly_off(value: Value, delta: int) -> Value:
    """Return a plausible wrong value: off by ten only if the number has tens."""
    if isinstance(value, bool):
        return not value
    return value + (delta if abs(value) > 20 or abs(delta) < 10 else delta // 10)
