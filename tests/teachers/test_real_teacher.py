"""The pipeline against real models: an engine behind HTTP, and one in process."""

import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from scripted_teacher import generate

from edit_trl.cli.quickstart import unpack_student
from edit_trl.data.answers import check_answer
from edit_trl.data.exemplars import Exemplar
from edit_trl.data.questions import Question
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat.local import TransformersTeacher

SUMS = [(2, 3), (4, 1), (7, 2), (5, 5)]
QUESTIONS = [Question(f"q{a}{b}", f"What is {a} + {b}?", str(a + b), "number") for a, b in SUMS]
EXEMPLARS = [
    Exemplar("What is 1 + 2?", "1 + 2 = 3. Therefore, the answer is 3.", "3", "1 + 2 = 4. Therefore, the answer is 4."),
    Exemplar("What is 6 + 2?", "6 + 2 = 8. Therefore, the answer is 8.", "8", "6 + 2 = 7. Therefore, the answer is 7."),
]
OPTIONS = {"exemplars": EXEMPLARS, "max_tokens": 60, "temperature": 0.0}


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    unpack_student(folder)
    return folder


@pytest.fixture(scope="module")
def served(smollm2, tmp_path_factory):
    """`transformers serve` on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(smollm2), "--device", "cpu"]
    with log.open("w") as file:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=file, stderr=subprocess.STDOUT
        )
        try:
            for _ in range(300):
                assert server.poll() is None, log.read_text()[-2000:]
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError:
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(120)


def check_run(made, dispatcher, folder, teacher_again) -> None:
    annotated = made.counts["annotate"]
    assert sum(annotated.values()) == 4
    assert made.failures == []
    for chain in [*made.correct, *made.rectified]:
        assert check_answer(chain.text, chain.question.answer, "number").verdict == "correct"
    assert annotated["correct"] + annotated["wrong"] > 0  # greedy: some answers are in the form asked for
    assert dispatcher.stats.completion_tokens > 0
    again, second = generate(folder, teacher_again, QUESTIONS, **OPTIONS)
    assert again == made
    assert second.stats.sent == 0


@pytest.mark.slow
def test_a_real_engine(served, smollm2, tmp_path):
    def teacher():
        return OpenAICompatibleTeacher(str(smollm2), [served], timeout=300)

    made, dispatcher = generate(tmp_path, teacher(), QUESTIONS, **OPTIONS)
    check_run(made, dispatcher, tmp_path, teacher())


@pytest.mark.slow
def test_a_real_local_model(smollm2, tmp_path):
    made, dispatcher = generate(tmp_path, TransformersTeacher(str(smollm2)), QUESTIONS, **OPTIONS)
    check_run(made, dispatcher, tmp_path, TransformersTeacher(str(smollm2)))
