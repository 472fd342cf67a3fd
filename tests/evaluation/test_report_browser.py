"""The report in headless Chromium, from a file. Without Debian's chromium and chromium-driver, this fails."""

import json
import random
import shutil
from pathlib import Path

import pytest
from report_data import evaluate_item, evaluate_items, suite_item, suite_items, write_run, write_training
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from edit_trl import ProceduralTeacher, generate_dual_cots, show_pairs
from edit_trl.data.pair_statistics import locate_pairs
from edit_trl.evaluation.report import write_pairs, write_report
from edit_trl.evaluation.report.training_history import read_training_run
from edit_trl.evaluation.runs.folder import read_run

pytestmark = pytest.mark.slow

HOSTILE = (
    "</script><script>window.hacked = 1</script><!-- --><img src=x onerror='hacked=1'> \"quoted\" &lt; ${x} `"
    " \u05e9\u05dc\u05d5\u05dd (3) \u0645\u0631\u062d\u0628\u0627 \U0001f600 "
)
LONG = "0123456789" * 5000


def start_browser(folder: Path) -> webdriver.Chrome:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    assert all(programs), "these tests need Chromium: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={folder}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(programs[1]))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    driver = start_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


class Page:
    """A page that is open, in words of the person before it."""

    def __init__(self, driver: webdriver.Chrome, path: Path, width: int = 1280):
        self.driver = driver
        driver.get_log("browser"), driver.get_log("performance")
        self.resize(width)
        driver.get(path.as_uri())
        WebDriverWait(driver, 60).until(
            lambda _: driver.execute_script("return document.documentElement.dataset.complete")
        )

    def resize(self, width: int) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str):
        [found] = self.all(selector)
        return found

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def pick(self, name: str, label: str) -> None:
        Select(self.one(f"#{name}")).select_by_visible_text(label)

    def press(self, keys: str, target: str = "body") -> None:
        self.one(target).send_keys(keys)

    @property
    def count(self) -> int:
        return int(self.text("#count").split()[0].replace(",", ""))

    @property
    def item(self) -> str:
        return self.text("#item-title bdi")

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two models, each with answers and log-probabilities; the later one is better."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [dict(row) for row in generate_dual_cots(ProceduralTeacher(), 84, conversational=True)]
    for number, row in enumerate(rows):
        row["source"] = ["procedural", "on_policy"][number % 2]
    for name, skill in (("warm_up", 0.4), ("key_steps", 0.7)):
        seed = int(skill * 10)
        write_run(folder / f"a_{name}", "evaluate", name, evaluate_items(rows, skill, samples=3, seed=seed))
        write_run(folder / f"s_{name}", "suite", name, suite_items(rows, skill, seed=seed))
    write_training(folder / "train")
    names = ("a_warm_up", "a_key_steps", "s_warm_up", "s_key_steps")
    return [read_run(folder / name) for name in names], read_training_run(folder / "train")


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    return write_report(runs[0], tmp_path_factory.mktemp("report") / "report.html", [runs[1]], title="Runs")


@pytest.fixture
def page(chromium, report):
    return Page(chromium, report)


def test_it_loads_from_a_file_and_asks_for_nothing(page, report):
    assert page.console() == []
    assert page.requests() == [report.as_uri()]
    assert page.driver.title == "Runs"
    headings = [heading.text for heading in page.all("h2")]
    assert headings == [
        "Summary",
        "By task",
        "By kind of mistake",
        "By source",
        "Learning curves",
        "Flips between two runs",
        "Items",
    ]
    assert [link.text for link in page.all("nav a")] == headings
    assert len(page.all("svg[role=img]")) >= 16


def test_no_other_script_runs_there(page):
    page.run(
        "const script = document.createElement('script'); script.textContent = 'window.own = 1';"
        "document.body.append(script)"
    )
    assert page.run("return window.own") is None
    assert "Content Security Policy" in page.console()[0]


def test_scores_are_those_of_the_runs(page, runs):
    for run, table in zip((runs[0][0], runs[0][2]), page.all(".scores table"), strict=True):
        cells = [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in
                 table.find_elements(By.CSS_SELECTOR, "tbody tr")]  # fmt: skip
        assert cells[0] == ["84", "84"]
        name = "accuracy" if run.record.kind == "evaluate" else "preference"
        low, high = (100 * bound for bound in run.record.intervals[name])
        assert cells[1][0] == f"{run.record.scores[name]:.1%} [{low:.1f}, {high:.1f}]"


def test_every_chart_has_its_table(page):
    for figure in page.all("#by-task .card, #by-mistake .card, #by-source .card, #learning figure, #flips .card"):
        details = figure.find_element(By.CSS_SELECTOR, "details")
        details.find_element(By.TAG_NAME, "summary").click()
        rows = WebDriverWait(page.driver, 60).until(
            lambda _, details=details: details.find_elements(By.CSS_SELECTOR, "tbody tr")
        )
        assert rows
    drawn = page.run("return document.querySelector('#by-task .value').textContent")
    assert drawn in page.text("#by-task tbody tr")
    assert page.text("#by-task select + *, #by-task caption").startswith("Accuracy by task")
    Select(page.all("#by-task select")[0]).select_by_visible_text("Unparsed")
    assert page.all("#by-task svg")[0].get_attribute("aria-label") == "Unparsed by task"


def test_filters(page, runs):
    first = runs[0][0]
    assert page.count == 84
    page.pick("filter-task", "arithmetic")
    assert page.count == 12
    page.pick("filter-source", "on_policy")
    assert page.count == sum(i["task"] == "arithmetic" and i["source"] == "on_policy" for i in first.items)
    page.one("#filter-reset").click()
    assert page.count == 84

    kind = first.items[0]["mistake"][0]
    page.pick("filter-mistake", kind)
    assert page.count == sum(kind in item["mistake"] for item in first.items)
    page.one("#filter-reset").click()

    page.pick("filter-run", "A: warm_up (answers)")
    for outcome, verdict in (("right", "correct"), ("wrong", "wrong"), ("unparsed", "unparsed")):
        page.pick("filter-outcome", outcome)
        assert page.count == sum(item["verdict"] == verdict for item in first.items) > 0
    page.pick("filter-run", "A: warm_up (preference between chains)")
    page.pick("filter-outcome", "wrong")
    assert page.count == sum(item["key_preferred"] is False for item in runs[0][2].items) > 0
    page.one("#filter-reset").click()

    page.one("#filter-different").click()
    different = [
        any(one["verdict"] != two["verdict"] for one, two in [(a, b)]) or c["key_preferred"] != d["key_preferred"]
        for a, b, c, d in zip(*(run.items for run in runs[0]), strict=True)
    ]
    assert page.count == sum(different) > 0
    page.one("#filter-different").click()

    page.one("#search").send_keys("CLARINET")
    in_text = [
        "clarinet" in json.dumps([item["prompt"], item["chosen"], item["rejected"]]).lower()
        for item in runs[0][2].items
    ]
    assert page.count == sum(in_text) > 0
    page.one("#search").send_keys("nowhere")
    assert page.count == 0
    assert "No item matches" in page.text("#item")
    assert page.console() == []


def test_flips(page, runs):
    before, after = ({item["id"]: item["verdict"] == "correct" for item in run.items} for run in runs[0][:2])
    fixed = [name for name in before if after[name] and not before[name]]
    broken = [name for name in before if before[name] and not after[name]]
    text = page.text("#flips p")
    assert f"on {len(fixed)} where" in text
    assert f"on {len(broken)} (broken)" in text
    assert f"fixed {len(fixed)}" in page.text("#flips .legend")
    [button] = [b for b in page.all("#flips button") if b.text == f"Show the {len(fixed)} fixed"]
    button.click()
    assert page.count == len(fixed) > 0
    assert page.item == fixed[0]
    page.one("#filter-flip").click()
    assert page.count == 84

    page.pick("flip-a", "B: key_steps (answers)")
    assert [option.text for option in Select(page.one("#flip-b")).options] == ["A: warm_up (answers)"]
    assert f"on {len(broken)} where" in page.text("#flips p")
    page.pick("flip-a", "A: warm_up (preference between chains)")
    assert "prefers the correct key steps" in page.text("#flips p")


def test_an_item_shows_everything(page, runs):
    answers, _, suite, _ = (run.items[0] for run in runs[0])
    assert page.item == answers["id"]
    assert answers["prompt"][0]["content"] in page.text(".prompt")
    assert page.text(".chain.plus .text") == suite["chosen"]
    assert page.text(".chain.minus .text") == suite["rejected"]
    for side, name in (("plus", "chosen"), ("minus", "rejected")):
        marks = page.run(f"return [...document.querySelectorAll('.chain.{side} .key')].map((m) => m.textContent)")
        assert marks == [suite[name][start:end] for start, end in suite[f"{name}_key_spans"]]
    sample = answers["samples"][0]
    assert page.text(".run .text") == sample["response"]
    assert page.text(".run .answer") == sample["response"][slice(*sample["span"])]
    assert page.run("return [...document.querySelectorAll('.run details')].length") == 2
    assert {"right", "wrong"} >= set(page.text(".run .verdict").split()) - {"\u2713", "\u2717"}


def test_the_heat_map_of_log_probabilities(page, runs):
    assert page.all(".heat") == []
    page.press("h")
    suite = runs[0][2].items[0]
    shown = page.run(
        "return [...document.querySelectorAll('.chain.plus .heat')].map("
        "(mark) => [mark.textContent, mark.title, mark.className])"
    )
    assert "".join(text for text, _, _ in shown) == suite["chosen"][: suite["tokens"]["chosen"][-2][1]]
    at = 0
    for text, title, style in shown:  # a token whose number alone is key, without the space, is two
        [logp] = [logp for start, end, logp in suite["tokens"]["chosen"] if start <= at < end]
        assert f"{-logp:.2f}" in title
        assert ("h0" in style) == (round(-logp, 2) <= 0.105)
        at += len(text)
    page.one(".heat-legend summary").click()
    rows = WebDriverWait(page.driver, 60).until(lambda _: page.all(".tokens tbody tr"))
    assert len(rows) == sum(map(len, suite["tokens"].values()))
    page.pick("heat", "off")
    assert page.all(".heat") == []


def test_keys(page, runs):
    ids = [item["id"] for item in runs[0][0].items]
    page.press("jj")
    assert page.item == ids[2]
    page.press("k")
    assert page.item == ids[1]
    page.press(Keys.ARROW_RIGHT)
    assert page.item == ids[2]
    page.press("/")
    page.driver.switch_to.active_element.send_keys("jjj")
    assert page.one("#search").get_attribute("value") == "jjj"
    page.driver.switch_to.active_element.send_keys(Keys.BACKSPACE * 3 + Keys.ESCAPE)
    page.press(Keys.ARROW_DOWN + Keys.END, "#list")
    assert page.item == ids[-1]
    selected = page.one("#list li[aria-selected=true]")
    assert page.one("#list").get_attribute("aria-activedescendant") == selected.get_attribute("id")
    page.press(Keys.HOME + Keys.ARROW_UP, "#list")
    assert page.item == ids[0]


def test_focus_is_visible_and_controls_have_names(page):
    page.press(Keys.TAB)
    focused = page.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert focused == "solid"
    nameless = page.run(
        "return [...document.querySelectorAll('select, input')].filter((one) => !one.closest('label')).length"
    )
    assert nameless == 0
    assert page.run("return [...document.querySelectorAll('svg:not([role=img]):not([aria-hidden])')].length") == 0


def test_light_and_dark(page):
    def background():
        return page.run("return getComputedStyle(document.body).backgroundColor")

    def prefer(scheme):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    prefer("light")
    light = background()
    prefer("dark")
    dark = background()
    assert light != dark
    toggle = page.one("#top > button")
    toggle.click()
    assert (toggle.text, background()) == ("Theme: light", light)
    prefer("light")
    toggle.click()
    assert (toggle.text, background()) == ("Theme: dark", dark)
    toggle.click()
    assert (toggle.text, background()) == ("Theme: auto", light)


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_page(page, width):
    page.resize(width)
    page.press("h")
    assert page.run("return document.documentElement.scrollWidth") <= width


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    answer = "Therefore, the answer is 3."
    rows = [
        {
            "id": f"{name} {text[:60]}",
            "task": text[:200],
            "mistake": [text[:200], "__proto__"],
            "source": "constructor",
            "answer": "3",
            "prompt": text,
            "chosen": f"{text} right {answer}",
            "rejected": f"{text} wrong {HOSTILE}",
        }
        for name, text in {"hostile": HOSTILE, "long": LONG, "both": HOSTILE * 200}.items()
    ]
    responses = [[f"{row['prompt']} {answer}", HOSTILE] for row in rows]
    suite = [suite_item(row, True, random.Random(0)) for row in rows]
    for item in suite:
        item["first_wrong"] |= {"token": HOSTILE, "instead": HOSTILE}
        item["greedy"]["response"] = HOSTILE
    answers = [evaluate_item(row, own) for row, own in zip(rows, responses, strict=True)]
    runs = [
        write_run(folder / "a", "evaluate", HOSTILE, answers),
        write_run(folder / "b", "suite", HOSTILE, suite),
        write_run(folder / "c", "evaluate", "__proto__", answers),
    ]
    write_training(folder / HOSTILE.replace("/", "\u2215")[:80], stages=())
    training = read_training_run(folder / HOSTILE.replace("/", "\u2215")[:80])
    path = write_report(runs, folder / "report.html", [training], title=HOSTILE)
    return path, rows, responses


def test_any_text_is_shown_as_text(chromium, hostile):
    path, rows, responses = hostile
    page = Page(chromium, path)
    assert page.text("h1") == HOSTILE
    for row, own in zip(rows, responses, strict=True):
        assert page.item == row["id"]
        assert page.text(".prompt .text") == row["prompt"].strip()
        assert page.text(".chain.plus .text") == row["chosen"]
        assert page.text(".chain.minus .text") == row["rejected"]
        assert page.text(".run .text") == own[0]
        assert page.text(".run .answer") == "3"  # placed by characters, after some that JavaScript counts twice
        page.press("h")
        assert page.text(".chain.plus .text") == row["chosen"]
        page.press("hj")
    names = [option.text for option in Select(page.one("#filter-task")).options]
    assert len(names) == 4
    page.pick("filter-mistake", "__proto__")
    assert page.count == 3
    assert page.run("return window.hacked") is None
    assert page.run("return document.scripts.length") == 2
    assert page.all("img, iframe, body style") == []
    assert page.console() == []
    assert page.requests() == [path.as_uri()]
    for width in (400, 1280):
        page.resize(width)
        assert page.run("return document.documentElement.scrollWidth") <= width


def test_right_to_left_text_stays_in_its_place(chromium, tmp_path):
    text = "\u05db\u05de\u05d4 \u05d4\u05dd 1 + 2?"
    row = {"id": "x", "task": "t", "prompt": text, "answer": "3"}
    run = write_run(tmp_path / "a", "evaluate", "a", [evaluate_item(row, ["Therefore, the answer is 3."])])
    page = Page(chromium, write_report([run], tmp_path / "report.html"))
    direction = "return getComputedStyle(document.querySelector(arguments[0])).direction"
    assert page.run(direction, ".prompt .text") == "rtl"
    assert page.run(direction, ".run .text") == "ltr"
    assert page.run(direction, "#item") == "ltr"


def test_two_thousand_items(chromium, tmp_path, runs):
    template = runs[0][2].items
    items = [{**template[n % 84], "id": f"item {n}"} for n in range(2000)]
    path = write_report([write_run(tmp_path / "a", "suite", "a", items)], tmp_path / "report.html")
    page = Page(chromium, path)
    assert page.count == 2000
    assert len(page.all("#list li")) < 200
    page.run("const list = document.getElementById('list'); list.scrollTop = list.scrollHeight")
    WebDriverWait(page.driver, 60).until(lambda _: len(page.all("#list li")) >= 160)
    page.press(Keys.END, "#list")
    assert page.item == "item 1999"
    print(f"time to interactive: {page.run('return document.documentElement.dataset.ready')} ms")


def test_a_browser_that_cannot_unpack_says_so(chromium, report):
    script = chromium.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": "delete window.DecompressionStream"}
    )
    try:
        chromium.get(report.as_uri())
        notice = WebDriverWait(chromium, 60).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "[role=alert]"))
        assert "too old" in notice[0].text
        assert chromium.find_elements(By.CSS_SELECTOR, ".scores")  # what needs no unpacking is there
    finally:
        chromium.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_pairs(chromium, tmp_path):
    rows = [dict(row) for row in generate_dual_cots(ProceduralTeacher(), 21, conversational=False)]
    path = write_pairs(locate_pairs(rows), tmp_path / "pairs.html", title="rows.jsonl", method="words")
    page = Page(chromium, path)
    assert page.console() == []
    assert page.count == 21
    assert [heading.text for heading in page.all("h2")] == ["Summary", "By task", "By kind of mistake", "Items"]
    assert page.text(".chain.plus .text") == rows[0]["chosen"]
    assert page.all("#filter-outcome, #filter-run, #heat, .run") == []
    page.pick("filter-task", rows[1]["task"])
    assert page.count == 3


@pytest.mark.parametrize(("scheme", "background"), [("light", "rgb(246, 246, 244)"), ("dark", "rgb(20, 22, 26)")])
def test_pairs_in_a_notebook(chromium, tmp_path, scheme, background):
    rows = generate_dual_cots(ProceduralTeacher(), 21)
    frame = show_pairs(rows.map(lambda row: {"task": HOSTILE}))._repr_html_()
    notebook = tmp_path / "notebook.html"
    notebook.write_text(
        f'<!DOCTYPE html><html style="color-scheme: {scheme}"><p style="height: 2000px">A cell</p>{frame}</html>',
        encoding="utf-8",
    )
    chromium.get(notebook.as_uri())
    chromium.execute_script("window.scrollTo(0, 1900)")
    before = chromium.execute_script("return window.scrollY")
    chromium.switch_to.frame(0)
    try:
        run = chromium.execute_script
        WebDriverWait(chromium, 60).until(lambda _: run("return document.documentElement.dataset.complete"))
        assert run("return getComputedStyle(document.body).backgroundColor") == background
        # It begins with the first pair, and neither that nor its links scroll the notebook.
        top = "return document.querySelector(arguments[0]).getBoundingClientRect().top"
        WebDriverWait(chromium, 60).until(lambda _: 0 < run(top, "#items") < 100)
        run("document.dispatchEvent(new Event('pointerdown'))")
        run("document.querySelector('nav a').click()")
        assert 0 < run(top, "#summary") < 100
        assert run("return location.href") == "about:srcdoc"
        assert run("return window.hacked") is None
    finally:
        chromium.switch_to.default_content()
    assert chromium.execute_script("return [window.scrollY, window.hacked]") == [before, None]
