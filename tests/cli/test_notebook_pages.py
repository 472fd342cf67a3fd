"""Pages below a cell of a notebook: `show_pairs` and `show_report`."""

import html
import re
from html.parser import HTMLParser

import pytest
from conftest import ROWS, conversational
from datasets import Dataset, DatasetDict
from report_data import evaluate_items, write_run

from edit_trl import show_pairs, show_report
from edit_trl.common.errors import InputError

HOSTILE = "</script></iframe>\"'><img src=x onerror=alert(1)> 2 \x1b[31m"


class Tags(HTMLParser):
    """The tags of some HTML, with their attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_pairs_are_one_sandboxed_frame(dual_cots):
    page = show_pairs(dual_cots, title="my pairs")
    [(tag, attributes)] = Tags(page._repr_html_()).tags
    assert tag == "iframe"
    assert attributes["sandbox"] == "allow-scripts"  # no access to the notebook, its cookies or its storage
    assert attributes["srcdoc"] == page.html
    assert repr(page).splitlines()[0] == "my pairs: 4 rows, 4 pairs"


def test_nothing_that_a_model_wrote_leaves_the_frame():
    rows = [{**conversational(ROWS[0]), "rejected": [{"role": "assistant", "content": HOSTILE}], "task": HOSTILE}]
    page = show_pairs(Dataset.from_list(rows), title=HOSTILE)
    frames = Tags(page._repr_html_()).tags
    assert [tag for tag, _ in frames] == ["iframe"]
    assert frames[0][1]["title"].startswith("</script>")
    assert "onerror" not in re.sub(r'<script type="application/json".*?</script>', "", page.html, flags=re.DOTALL)
    assert "<img" not in page.html
    assert html.escape(page.html) in page._repr_html_()
    assert "\x1b" not in repr(page)


def test_a_limit_is_said_on_the_page(dual_cots):
    page = show_pairs(dual_cots, limit=1)
    assert "The first 1 of 4 pairs are shown; the statistics are over all of them." in page.html
    assert "are shown" not in show_pairs(dual_cots, limit=4).html.split('id="data"')[1].split("</script>")[0]
    assert repr(page).startswith("dual CoTs: 4 rows, 4 pairs")


def test_tokens_of_a_tokenizer(dual_cots, tokenizer):
    assert "by 'edit'" in repr(show_pairs(dual_cots, method="edit", tokenizer=tokenizer))
    assert "tokens correct" in repr(show_pairs(dual_cots, tokenizer=tokenizer))


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("rows.jsonl", {}, r"takes a datasets.Dataset, got 'rows.jsonl'; `load_dual_cots` loads"),
        (ROWS, {}, "`Dataset.from_list` makes one of rows"),
        (
            DatasetDict(test=Dataset.from_list(ROWS)),
            {},
            r"got a dictionary of 'test': `show_pairs\(dataset\[SPLIT\]\)`",
        ),
        (Dataset.from_list(ROWS), {"limit": 0}, "limit must be 1 or more, got 0"),
        (Dataset.from_list([{"prompt": "a", "chosen": "b"}]), {}, "rejected"),
        (Dataset.from_list(ROWS), {"method": "spans"}, "row 1: .*spans"),
    ],
)
def test_bad_input(dataset, options, message):
    with pytest.raises(InputError, match=message):
        show_pairs(dataset, **options)


def test_a_report(tmp_path):
    for name, skill in (("base", 0.0), ("student", 1.0)):
        write_run(tmp_path / name, "evaluate", name, evaluate_items(ROWS, skill))
    page = show_report(tmp_path)
    assert repr(page) == "base, student: 2 runs with 8 items"
    assert [tag for tag, _ in Tags(page._repr_html_()).tags] == ["iframe"]
    assert repr(show_report(str(tmp_path / "base"), title="Mine")) == "Mine: 1 run with 4 items"
    with pytest.raises(InputError, match="no such folder"):
        show_report(tmp_path / "none")
    with pytest.raises(InputError, match="nothing to report"):
        show_report()
