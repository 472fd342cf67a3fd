"""A recipe of `edit-trl generate` against a server on this machine, and its answers."""

import json
from pathlib import Path

import yaml
from chat_server import MODEL


def recipe(folder: Path, url: str, questions: int = 40, **values) -> Path:
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(questions)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "recipe.yaml"
    base = {"model": MODEL, "base_urls": [url], "dataset_name": "q.jsonl", "output_dir": str(folder / "out")}
    path.write_text(yaml.safe_dump(base | values))
    return path


def solve(body: dict) -> str:
    """Right for even numbers when asked plainly, right with a hint, wrong when asked to corrupt."""
    prompt = body["messages"][-1]["content"]
    n = int(prompt.rpartition("What is ")[2].partition(" ")[0])
    wrong = "Wrong reasoning:" in prompt or ("Hint:" not in prompt and n % 2)
    return f"{n} and one more. Therefore, the answer is {n + (5 if wrong else 1)}."
