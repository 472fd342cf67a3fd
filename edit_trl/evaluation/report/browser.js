// The list of items, its filters and the keys that go through it.
const BATCH = 80;
const OUTCOMES = {
  right: "right", wrong: "wrong", unparsed: "unparsed", cut: "cut off", fixed: "fixed", broken: "broken",
};

function browser(items) {
  const state = { task: "", mistake: "", source: "", run: "", outcome: "", text: "", different: false, flip: null };
  const anyRuns = items.some((item) => item.runs.length);
  const texts = new Array(items.length);
  let found = [];
  let at = -1;
  let made = 0;

  const list = element("ul", { id: "list", role: "listbox", tabindex: 0, "aria-label": "Items", onscroll: more });
  const pane = element("article", { id: "item", tabindex: -1, "aria-labelledby": "item-title" });
  const count = element("p", { id: "count", role: "status" });
  const fields = element("div", { class: "fields" });
  const search = element("input", { type: "search", id: "search", placeholder: "Search texts", "aria-keyshortcuts": "/",
    oninput: () => { state.text = search.value.toLowerCase(); apply(); } });

  function names(field) {
    return [...new Set(items.flatMap((item) => item[field] || []))].sort((a, b) => (a < b ? -1 : 1));
  }

  function select(title, field, values) {
    return values.length > 1 && choice(title, [["", "all"], ...values.map((name) => [name, name])], state[field],
      (value) => { state[field] = value; apply(); }, { id: `filter-${field}` });
  }

  function drawFields() {
    const runs = data.runs.map((_, index) => runOption(index));
    const outcomes = Object.entries(OUTCOMES).filter(([key]) => key !== "fixed" && key !== "broken");
    fields.replaceChildren(...[
      select("Task", "task", names("task")), select("Mistake", "mistake", names("mistake")),
      select("Source", "source", names("source")),
      anyRuns && data.runs.length > 1 && choice("Run", [["", "any"], ...runs], state.run,
        (value) => { state.run = value; apply(); }, { id: "filter-run" }),
      anyRuns && choice("Outcome", [["", "all"], ...outcomes], state.outcome,
        (value) => { state.outcome = value; apply(); }, { id: "filter-outcome" }),
      element("label", { class: "field grow" }, element("span", {}, "Search"), search),
      anyRuns && data.runs.length > 1 && element("label", { class: "check" },
        element("input", { type: "checkbox", id: "filter-different", checked: state.different,
          onchange: (event) => { state.different = event.target.checked; apply(); } }), " only where runs differ"),
      state.flip && element("button", { type: "button", class: "chip", id: "filter-flip",
        onclick: () => { state.flip = null; drawFields(); apply(); } },
      `${OUTCOMES[state.flip[0]]}, ${letter(state.flip[1])} to ${letter(state.flip[2])} \u2715`),
    ].filter(Boolean));
  }

  function reset() {
    Object.assign(state, { task: "", mistake: "", source: "", run: "", outcome: "", text: "", different: false, flip: null });
    search.value = "";
    drawFields();
    apply();
  }

  function textOf(index) {
    if (texts[index] === undefined) {
      const item = items[index];
      const turns = Array.isArray(item.prompt) ? item.prompt.map((turn) => turn.content) : [item.prompt];
      const own = item.runs.flatMap(([, outcome]) => (outcome.samples || []).map((sample) => sample.response));
      texts[index] = [item.id, item.task, item.answer, ...turns, item.chosen, item.rejected, ...own].join("\n").toLowerCase();
    }
    return texts[index];
  }

  function hasOutcome(outcome) {
    if (state.outcome === "right") return isRight(outcome) === true;
    if (state.outcome === "cut") return Boolean(outcome.cut_off || outcome.greedy?.cut_off);
    if (state.outcome === "unparsed") return outcome.verdict === "unparsed";
    return "verdict" in outcome ? outcome.verdict === "wrong" : outcome.key_preferred === false;
  }

  function differs(item) {
    const outcomes = item.runs.map(([run, outcome]) => [data.runs[run].kind, outcome.verdict ?? String(outcome.key_preferred)]);
    return outcomes.some(([kind, one]) => outcomes.some(([other, two]) => kind === other && one !== two));
  }

  function matches(index) {
    const item = items[index];
    if (state.task && item.task !== state.task) return false;
    if (state.source && item.source !== state.source) return false;
    if (state.mistake && !(item.mistake || []).includes(state.mistake)) return false;
    if (state.flip && flipOf(item, state.flip[1], state.flip[2]) !== state.flip[0]) return false;
    if (state.run || state.outcome) {
      const runs = item.runs.filter(([run]) => state.run === "" || run === Number(state.run));
      if (!runs.length || (state.outcome && !runs.some(([, outcome]) => hasOutcome(outcome)))) return false;
    }
    if (state.different && !differs(item)) return false;
    return !state.text || textOf(index).includes(state.text);
  }

  function apply() {
    const before = found[at];
    found = items.map((_, index) => index).filter(matches);
    made = 0;
    list.replaceChildren();
    list.scrollTop = 0;
    count.textContent = `${found.length.toLocaleString("en")} of ${items.length.toLocaleString("en")} items`;
    at = -1;
    grow(BATCH);
    if (found.length) go(Math.max(found.indexOf(before), 0), false);
    else {
      list.removeAttribute("aria-activedescendant");
      pane.replaceChildren(element("p", { class: "note" }, "No item matches these filters."));
    }
  }

  function mark([run, outcome]) {
    const right = isRight(outcome);
    const name = outcome.verdict || (right === null ? "none" : right ? "correct" : "wrong");
    const [sign, text] = VERDICTS[name];
    return element("span", { class: `verdict ${name}`, title: `${letter(run)}, ${kindName(run)}: ${text}` }, `${letter(run)}${sign}`);
  }

  function row(place) {
    const item = items[found[place]];
    const asked = Array.isArray(item.prompt) ? item.prompt[item.prompt.length - 1].content : item.prompt;
    const marks = Object.keys(KINDS).map((kind) => item.runs.filter(([run]) => data.runs[run].kind === kind))
      .filter((runs) => runs.length).map((runs) => element("span", {}, runs.map(mark)));
    return element("li", { role: "option", id: `row-${place}`, "aria-selected": "false", onclick: () => go(place, true, true) },
      element("span", { class: "row-head" }, words(asked.trim().slice(0, 160)), element("span", { class: "marks" }, marks)),
      element("span", { class: "note line" }, words(item.id)));
  }

  function grow(wanted) {
    const until = Math.min(found.length, wanted);
    const rows = [];
    for (; made < until; made += 1) rows.push(row(made));
    list.append(...rows);
  }

  function more() {
    if (list.scrollTop + list.clientHeight > list.scrollHeight - 600) grow(made + BATCH);
  }

  function go(place, scroll = true, tapped = false) {
    if (place < 0 || place >= found.length) return;
    grow(place + 20);
    document.getElementById(`row-${at}`)?.setAttribute("aria-selected", "false");
    at = place;
    const chosen = list.children[at];
    chosen.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", chosen.id);
    if (scroll) {
      const [above, below] = [chosen.offsetTop, chosen.offsetTop + chosen.offsetHeight];
      if (above < list.scrollTop) list.scrollTop = above;
      else if (below > list.scrollTop + list.clientHeight) list.scrollTop = below - list.clientHeight;
    }
    drawItem();
    pane.scrollTop = 0;
    if (tapped && window.matchMedia("(max-width: 860px)").matches) pane.scrollIntoView();
  }

  function drawItem() {
    pane.replaceChildren(...article(items[found[at]], `${at + 1} of ${found.length}`, drawItem).flat().filter(Boolean));
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { target } = event;
    if (target.closest?.("input, select, textarea")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const inList = target === list;
    const steps = { j: 1, k: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 } : {}),
      ArrowRight: 1, ArrowLeft: -1 };
    // An element that scrolls sideways keeps its arrows.
    if (event.key.startsWith("Arrow") && target.closest?.("[role=region]")) return;
    if (event.key in steps) go(Math.min(Math.max(at + steps[event.key], 0), found.length - 1));
    else if (inList && event.key === "Home") go(0);
    else if (inList && event.key === "End") go(found.length - 1);
    else if (event.key === "/") search.focus();
    else if (event.key === "h" && at >= 0) { toggleHeat(items[found[at]]); drawItem(); }
    else return;
    event.preventDefault();
  });

  function show(flip, a, b) {
    reset();
    state.flip = [flip, a, b];
    drawFields();
    apply();
    root.scrollIntoView();
    list.focus({ preventScroll: true });
  }

  const root = section("items", "Items", fields, element("div", { class: "bar-head" },
    element("div", { class: "counted" }, count,
      element("button", { type: "button", class: "quiet", id: "filter-reset", onclick: reset }, "Reset")),
    element("p", { class: "note keys" }, "Keys: ", ["j", "k"].map((key) => [element("kbd", {}, key), " "]), "or arrows: next, previous; ",
      element("kbd", {}, "/"), " search", anyRuns && ["; ", element("kbd", {}, "h"), " log-probabilities"])),
  element("div", { class: "browser" }, list, pane));
  drawFields();
  return { root, show, start: apply, redraw: () => at >= 0 && drawItem() };
}
