"""Writes the sets of a matrix to folders: procedural problems without overlap, and parts of files."""

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inputs import read_columns

from edit_trl.common.errors import InputError
from effect_matrix.matrix import Data, Matrix, Source

Row = dict[str, Any]


def resolve(data: Data) -> dict[str, dict[str, Any]]:
    """The contents of each set: its options and, for procedural problems, the first problem of each family.

    The problems of a set follow those of the sets before it, so that no problem is in two sets. A set that is
    added at the end does not change the others.
    """
    used: dict[tuple[str, int, int], int] = {}
    specs = {}
    for name, source in data.named().items():
        spec = {key: value for key, value in vars(source).items() if value is not None}
        if source.families and source.of is None:
            spec["starts"] = {}
            for index, family in enumerate(source.families):
                stream = (family, source.difficulty, source.problem_seed)
                spec["starts"][family] = used.get(stream, 0)
                count = len(range(index, source.rows, len(source.families)))
                used[stream] = used.get(stream, 0) + count
        if source.recorded:
            stream = (source.recorded, 0, 0)
            spec["recorded_start"] = used.get(stream, 0)
            used[stream] = spec["recorded_start"] + source.recorded_rows
        specs[name] = spec
    return specs


def make_sets(matrix: Matrix, folder: Path) -> dict[str, Path]:
    """Write the sets that do not depend on a student, and check that no test problem is in another set.

    Returns:
        The rows' folder of each set; task files, and pairs that depend on a student, have none.

    Raises:
        InputError: A set cannot be made, or a problem is in two sets.
    """
    rows: dict[str, list[Row]] = {}
    specs = resolve(matrix.data)
    for name, source in matrix.data.named().items():
        if source.of is not None and not source.by_student:
            whole = source.of if source.of == "warm_up" else f"pairs_{source.of}"
            if whole in rows:
                rows[name] = _part(rows[whole], source)
        elif source.of is None and (source.families or source.recorded):
            rows[name] = _procedural(source, specs[name]["starts"]) if source.families else []
            if source.recorded:
                training = name == "warm_up" or name.startswith("pairs_")
                rows[name] += _recorded(source, specs[name]["recorded_start"], training)
        elif source.path and "{" not in source.path:
            rows[name] = _read(source)
    _refuse_overlap(rows, matrix)
    return {name: _save(items, folder / name, specs[name]) for name, items in rows.items()}


def _procedural(source: Source, starts: Mapping[str, int]) -> list[Row]:
    from edit_trl import ProceduralTeacher, generate_dual_cots

    streams = []
    for index, family in enumerate(source.families):
        count = len(range(index, source.rows, len(source.families)))
        if not count:
            continue
        teacher = ProceduralTeacher([family], seed=source.problem_seed, difficulty=source.difficulty)
        start, end = starts[family], starts[family] + count
        dataset = generate_dual_cots(teacher, end, conversational=True)
        streams.append(dataset.select(range(start, end)).to_list())
    return [stream[i] for i in range(len(streams[0])) for stream in streams if i < len(stream)]


def _recorded(source: Source, start: int, right_alone: bool) -> list[Row]:
    """Recorded questions, each with the teacher's response as a correct chain alone."""
    from edit_trl.data.answers import check_answer, infer_answer_type

    lines = read_columns(Path(source.recorded), dict.fromkeys(("question", "teacher_response", "answer", "task"), str))
    # A repeated question counts once, or it could be in two sets.
    records = list({record["question"]: record for record in lines}.values())
    order = random.Random(0).sample(range(len(records)), len(records))[start : start + source.recorded_rows]
    if len(order) < source.recorded_rows:
        raise InputError(
            f"{source.recorded} has {len(records)} questions, of which other sets take {start}; "
            f"`recorded_rows: {source.recorded_rows}` is too many"
        )
    rows = []
    for index in order:
        record = records[index]
        response, answer = record["teacher_response"], record["answer"]
        kind = infer_answer_type(answer)
        if right_alone and check_answer(response, answer, kind).verdict != "correct":
            continue
        turns = {"prompt": record["question"], "chosen": response}
        row = {"answer": answer, "task": record["task"], "source": "recorded", "id": f"recorded/{index}"}
        rows.append(_as_messages(turns | row) | {"rejected": []})
    return rows


def _part(rows: list[Row], source: Source) -> list[Row]:
    matches = [row for row in rows if not source.families or row["task"] in source.families]
    return matches[: source.rows]


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
    """The prompt of a row, as text."""
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def _refuse_overlap(rows: Mapping[str, list[Row]], matrix: Matrix) -> None:
    prompts = {name: {prompt_text(row) for row in items} for name, items in rows.items()}
    tests = {f"test_{name}" for name in matrix.data.tests}
    measured = {"dev", "held_out", *tests}
    errors = []
    for name in sorted(measured & prompts.keys()):
        for other in prompts:
            if other in measured and not (name == "dev" and other in tests):
                continue
            shared = sorted(prompts[name] & prompts[other])
            if shared:
                errors.append(
                    f"`{name}` and `{other}` share {len(shared)} problems, such as {shared[0][:100]!r}; what "
                    "is measured must not be trained or tuned on. Take other rows, or one `problem_seed`"
                )
    if errors:
        raise InputError(errors, heading=f"{matrix.path}: sets that overlap:")


def _save(rows: list[Row], folder: Path, spec: Mapping[str, Any]) -> Path:
    """Write a set, unless the folder has it already."""
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
    """A row's question, in the format that `edit-trl generate` reads."""
    columns = {key: row[key] for key in ("answer", "id", "task") if row.get(key) is not None}
    return json.dumps({"question": prompt_text(row), **columns}) + "\n"
