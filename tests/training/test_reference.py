import pytest
import torch
from accelerate import Accelerator
from conftest import tiny_llama
from datasets import Dataset

from edit_trl.common.errors import InputError
from edit_trl.training.fork_selection import fork_histogram, hardest_forks, keep_hard_forks
from edit_trl.training.reference import add_scores, weights_hash


@pytest.fixture
def stored(tmp_path):
    """A dataset with files, as a prepared one has: its scores are cached beside them."""
    Dataset.from_list([{"value": n} for n in range(5)]).save_to_disk(tmp_path / "rows")
    return lambda: Dataset.load_from_disk(tmp_path / "rows")


def score(dataset, model, seen: list, settings="a", batch_size=2):
    def score_batch(batch):
        seen.append(len(batch["value"]))
        assert not model.training
        return {"double": 2.0 * batch["value"], "half": batch["value"] / 2}

    def collate(rows):
        return {"value": torch.tensor([row["value"] for row in rows])}

    return add_scores(
        dataset,
        score_batch,
        model=model,
        accelerator=Accelerator(cpu=True),
        collator=collate,
        batch_size=batch_size,
        settings=settings,
    )


def test_adds_columns_in_order(stored, model):
    model.train()
    dataset = score(stored(), model, [])
    assert dataset["double"][:] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert dataset["half"][:] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert dataset["value"][:] == [0, 1, 2, 3, 4]
    assert model.training


def test_computed_once(stored, model):
    seen: list[int] = []
    first = score(stored(), model, seen)
    assert seen == [2, 2, 1]
    second = score(stored(), model, seen)
    assert len(seen) == 3
    assert second.to_list() == first.to_list()


def test_another_model_or_setting_is_scored_anew(stored, model):
    seen: list[int] = []
    score(stored(), model, seen)
    score(stored(), model, seen, settings="b")
    score(stored(), tiny_llama(seed=1), seen)
    assert len(seen) == 9


def test_weights_hash():
    assert weights_hash(tiny_llama()) == weights_hash(tiny_llama())
    changed = tiny_llama()
    with torch.no_grad():
        changed.model.norm.weight[0] += 1e-3
    assert weights_hash(changed) != weights_hash(tiny_llama())
    assert weights_hash(tiny_llama().bfloat16()) != weights_hash(tiny_llama())


def test_histogram():
    text = fork_histogram([0.05, 0.95, 0.99, 1.0])
    assert "0.0: 25%" in text
    assert "0.9: 75%" in text


def test_keeps_hard_forks():
    dataset = Dataset.from_list([{"fork_confidence": c} for c in (0.2, 0.9, 0.91)])
    assert keep_hard_forks(dataset, 0.9)["fork_confidence"][:] == [0.2, 0.9]
    with pytest.raises(InputError, match=r"leaves no pair: .* with at least 0\.200"):
        keep_hard_forks(dataset, 0.1)


@pytest.mark.parametrize(
    ("confidences", "share", "kept"),
    [
        ([0.9, 0.1, 0.5, 0.2], 0.5, [1, 3]),
        ([0.9, 0.1, 0.5, 0.2], 0.25, [1]),
        ([0.9, 0.1, 0.5, 0.2], 1.0, [0, 1, 2, 3]),
        ([0.9, 0.1, 0.5], 0.5, [1, 2]),  # rounded up
        ([0.9, 0.1], 0.001, [1]),
        ([0.3, 0.7, 0.3, 0.3], 0.5, [0, 2]),  # of equals the earlier ones
        ([1 - n / 1000 for n in range(100)], 0.07, list(range(93, 100))),  # 0.07 * 100 > 7 in floats
    ],
)
def test_keeps_the_hardest_forks_in_row_order(confidences, share, kept):
    rows = [{"fork_confidence": c, "row": n} for n, c in enumerate(confidences)]
    assert hardest_forks(Dataset.from_list(rows), share)["row"][:] == kept
