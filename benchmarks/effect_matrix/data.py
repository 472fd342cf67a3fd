"""The sets of a matrix as folders: procedural problems dealt without overlap, files cut to size."""

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from effect_matrix.matrix import Data, Matrix, Source

Row = dict[str, Any]


def resolve(data: Data) -> dict[str, dict[str, Any]]:
    """What each set holds, set by set: its options and, of procedural problems, where each family starts.

    A set's problems follow those of the sets before it, so that no problem is in two; a set that is added at
    the end changes no other.
    """
    dealt: dict[tuple[str, int, int], int] = {}
    resolved = {}
    for name, source in data.named().items():
        spec = {key: value for key, value in vars(source).items() if value is not None}
        if source.families and source.of is None:
            spec["starts"] = {}
            for index, family in enumerate(source.families):
                stream = (family, source.difficulty, source.problem_seed)
                spec["starts"][family] = dealt.get(stream, 0)
                count = len(range(index, source.rows, len(source.families)))
                dealt[stream] = dealt.get(stream, 0) + count
        if source.recorded:
            stream = (source.recorded, 0, 0)
            spec["recorded_start"] = dealt.get(stream, 0)
            dealt[stream] = spec["recorded_start"] + source.recorded_rows
        resolved[name] = spec
    return resolved


def make_sets(matrix: Matrix, folder: Path) -> dict[str, Path]:
    """Write the sets that no student takes part in, and see that no test problem is in another set.

    Returns:
        Each set's folder or file; a test that is a task file, or pairs that a student decides, have none.

    Raises:
        InputError: A set that cannot be made, or problems that are in two sets.
    """
    rows: dict[str, list[Row]] = {}
    specs = resolve(matrix.data)
    for name, source in matrix.data.named().items():
        if source.of is not None and not source.by_student:
            of = source.of if source.of == "warm_up" else f"pairs_{source.of}"
            if of in rows:
                rows[name] = _part(rows[of], source)
        elif source.of is None and (source.families or source.recorded):
            rows[name] = _deal(source, specs[name]["starts"]) if source.families else []
            if source.recorded:
                training = name == "warm_up" or name.startswith("pairs_")
                rows[name] += _recorded(source, specs[name]["recorded_start"], training)
        elif source.path and "{" not in source.path:
            rows[name] = _read(source)
    _refuse_overlap(rows, matrix)
    return {name: _save(of, folder / name, specs[name]) for name, of in rows.items()}


def _deal(source: Source, starts: Mapping[str, int]) -> list[Row]:
    from edit_trl import ProceduralTeacher, generate_dual_cots

    streams = []
    for index, family in enumerate(source.families):
        count = len(range(index, source.rows, len(source.families)))
        if not count:
            continue
        teacher = ProceduralTeacher([family], seed=source.problem_seed, difficulty=source.difficulty)
        made = generate_dual_cots(teacher, starts[family] + count, conversational=True)
        streams.append(made.select(range(starts[family], starts[family] + count)).to_list())
    return [stream[i] for i in range(len(streams[0])) for stream in streams if i < len(stream)]


def _recorded(source: Source, start: int, right_alone: bool) -> list[Row]:
    """Questions with the teacher's chains, as correct chains alone."""
    from edit_trl.data.answers import check_answer, infer_answer_type

    lines = Path(source.recorded).read_text(encoding="utf-8").splitlines()
    # A question that is there twice counts once, or it could be in two sets.
    read = list({of["question"]: of for of in map(json.loads, lines)}.values())
    order = random.Random(0).sample(range(len(read)), len(read))[start : start + source.recorded_rows]
    if len(order) < source.recorded_rows:
        raise InputError(
            f"{source.recorded} has {len(read)} questions, of which other sets take {start}; "
            f"`recorded_rows: {source.recorded_rows}` is too many"
        )
    rows = []
    for index in order:
        of = read[index]
        kind = infer_answer_type(of["answer"])
        if right_alone and check_answer(of["teacher_response"], of["answer"], kind).verdict != "correct":
            continue
        turns = {"prompt": of["question"], "chosen": of["teacher_response"]}
        row = {"answer": of["answer"], "task": of["task"], "source": "recorded", "id": f"recorded/{index}"}
        rows.append(_as_messages(turns | row) | {"rejected": []})
    return rows


def _part(rows: list[Row], source: Source) -> list[Row]:
    kept = [row for row in rows if not source.families or row["task"] in source.families]
    return kept[: source.rows]


def _read(source: Source) -> list[Row]:
    from edit_trl import load_dual_cots

    rows = load_dual_cots(source.path, split=source.split).to_list()
    return [_as_messages(row) for row in rows[: source.rows]]


def _as_messages(row: Row) -> Row:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    turns = {
        column: [{"role": role, "content": row[column]}]
        for column, role in roles.items()
        if isinstance(row.get(column), str)
    }
    return row | turns


def prompt_text(row: Mapping[str, Any]) -> str:
    """What is asked, as text."""
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def _refuse_overlap(rows: Mapping[str, list[Row]], matrix: Matrix) -> None:
    asked = {name: {prompt_text(row) for row in of} for name, of in rows.items()}
    tests = {f"test_{name}" for name in matrix.data.tests}
    measured = {"dev", "held_out", *tests}
    problems = []
    for name in sorted(measured & asked.keys()):
        for other in asked:
            if other in measured and not (name == "dev" and other in tests):
                continue
            shared = sorted(asked[name] & asked[other])
            if shared:
                problems.append(
                    f"`{name}` and `{other}` share {len(shared)} problems, such as {shared[0][:100]!r}; what "
                    "is measured must not be trained or tuned on. Take other rows, or one `problem_seed`"
                )
    if problems:
        raise InputError(problems, heading=f"{matrix.path}: sets that overlap:")


def _save(rows: list[Row], folder: Path, spec: Mapping[str, Any]) -> Path:
    """Write a set, unless the same one is there."""
    from datasets import Dataset

    note = folder / "set.json"
    text = json.dumps(spec, sort_keys=True, indent=2)
    questions = folder / "questions.jsonl"
    if note.is_file() and questions.is_file() and note.read_text(encoding="utf-8") == text:
        return folder / "rows"
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    Dataset.from_list(rows).save_to_disk(draft / "rows")
    (draft / questions.name).write_text("".join(map(_question, rows)), encoding="utf-8")
    (draft / note.name).write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return folder / "rows"


def _question(row: Row) -> str:
    """A row's problem, as `edit-trl generate` reads questions."""
    columns = {key: row[key] for key in ("answer", "id", "task") if row.get(key) is not None}
    return json.dumps({"question": prompt_text(row), **columns}) + "\n"
