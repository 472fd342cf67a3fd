// One item: its prompt, both chains, and what each run made of it.
// Tokens are unpacked after the page is there.
const view = { heat: null, tokens: [] };
const tokensOf = (outcome) => view.tokens[outcome?.tokens];
const hasTokens = (item) => item.runs.filter(([, outcome]) => tokensOf(outcome)).map(([run]) => run);

const LEVELS = [[0.105, "p > 0.9"], [0.693, "p > 0.5"], [2.303, "p > 0.1"], [4.605, "p > 0.01"], [Infinity, "p \u2264 0.01"]];
const level = (logp) => (logp === null ? 4 : LEVELS.findIndex(([limit]) => -logp <= limit));
const nats = (logp) => (logp === null ? "not finite" : `${minus(logp.toFixed(2))} nats`);

// [start, end, log-probability] of each token; several tokens of one character are one entry.
function unpackTokens({ lengths, starts, logps }) {
  const jumps = new Map(starts);
  const tokens = [];
  let at = 0;
  lengths.forEach((length, number) => {
    const start = jumps.has(number) ? jumps.get(number) : at;
    at = start + length;
    const logp = logps[number] === null ? null : -logps[number] / 100;
    const last = tokens[tokens.length - 1];
    if (last && length && last[0] === start && last[1] === at) last[2] = logp === null || last[2] === null ? null : last[2] + logp;
    else tokens.push([start, at, logp]);
  });
  return tokens;
}

function heatLayer(tokens) {
  let end = 0;
  const layer = [];
  for (const [start, stop, logp] of tokens) {
    if (stop > Math.max(start, end)) {
      layer.push([Math.max(start, end), stop, `heat h${level(logp)}`, nats(logp)]);
      end = stop;
    }
  }
  return layer;
}

const isLong = (text) => text.length > 2500;
const textBox = (text, nodes, name) => element("div", {
  class: `text ${isLong(text) ? "long" : ""}`, dir: "auto", tabindex: isLong(text) ? 0 : null,
  role: isLong(text) ? "region" : null, "aria-label": isLong(text) ? name : null,
}, nodes);

function prompt(value) {
  const turns = Array.isArray(value) ? value : [{ role: "", content: String(value) }];
  return element("div", { class: "panel prompt" }, element("h4", {}, "Prompt"), turns.map((turn) => [
    turn.role && element("p", { class: "note" }, words(turn.role)),
    textBox(turn.content, [turn.content.trim()], "Prompt"),
  ]));
}

function chainPanel(item, side, outcome) {
  const right = side === "chosen";
  const text = item[side];
  const layers = [(item[`${side}_spans`] || []).map(([start, end]) => [start, end, `key ${right ? "plus" : "minus"}`])];
  if (item[`${side}_thoughts`]) layers.push([[0, item[`${side}_thoughts`], "thoughts", "thoughts"]]);
  if (tokensOf(outcome)) layers.push(heatLayer(unpackTokens(tokensOf(outcome)[side])));
  const turn = right && outcome?.first_wrong;
  if (turn && turn.end > turn.start) {
    layers.push([[turn.start, turn.end, "turn", `greedy decoding would generate \u201c${turn.instead}\u201d`]]);
  }
  const title = right ? "Correct chain" : "Wrong chain";
  return element("div", { class: `panel chain ${right ? "plus" : "minus"}` },
    element("h4", {}, element("span", { class: "sign", "aria-hidden": "true" }, right ? "+" : "\u2212"), ` ${title}`),
    textBox(text, marked(text, layers), title));
}

function heatControl(item, redraw) {
  const able = hasTokens(item);
  if (!able.length) return null;
  const options = [["", "off"], ...able.map((run) => [String(run), `${letter(run)}: ${data.runs[run].name}`])];
  return choice("Log-probabilities", options, able.includes(view.heat) ? String(view.heat) : "", (value) => {
    view.heat = value === "" ? null : Number(value);
    redraw();
  }, { id: "heat", "aria-keyshortcuts": "h" });
}

function toggleHeat(item) {
  const able = hasTokens(item);
  if (able.length) view.heat = able.includes(view.heat) ? null : able[0];
}

function heatLegend(item, outcome) {
  const rows = (side) => {
    const chars = characters(item[side]);
    return unpackTokens(tokensOf(outcome)[side]).map(([start, end, logp], number) => [
      String(number + 1), end > start ? words(JSON.stringify(chars.slice(start, end)), "code") : "(end)", nats(logp),
    ]);
  };
  return element("div", { class: "heat-legend" },
    element("p", { class: "note" }, "Probability of each token: ", LEVELS.map(([, name], number) =>
      [element("span", { class: `heat h${number}` }, name), " "]),
    "Key steps are framed."),
    details("As a table", () => ["chosen", "rejected"].map((side) =>
      table(side === "chosen" ? "Correct chain" : "Wrong chain", ["#", "Token", "Log-probability"], rows(side), "tokens"))));
}

function dualChain(item, redraw) {
  if (item.chosen === undefined) return null;
  const outcome = view.heat === null ? null : outcomeOf(item, view.heat);
  const heat = Boolean(tokensOf(outcome));
  // Without a heat map the wrong turn of a lone run can be shown too.
  const lone = item.runs.filter(([, one]) => "logps" in one);
  const used = heat ? outcome : lone.length === 1 ? { first_wrong: lone[0][1].first_wrong } : null;
  return element("div", { class: `dual ${heat ? "heated" : ""}` },
    element("div", { class: "bar-head" }, element("p", { class: "note" }, "Key steps, where the chains differ, are ",
      element("mark", { class: "key plus" }, "marked"), " ", element("mark", { class: "key minus" }, "so"), "."), heatControl(item, redraw)),
    heat && heatLegend(item, outcome),
    element("div", { class: "chains" }, chainPanel(item, "chosen", used),
      item.rejected === undefined ? null : chainPanel(item, "rejected", used)));
}

function suiteCard(run, outcome) {
  const { logps, first_wrong: turn, greedy } = outcome;
  const value = (number) => (number === null ? "\u2013" : minus(number.toFixed(3)));
  const preferred = outcome.key_preferred === null ? "none" : outcome.key_preferred ? "correct" : "wrong";
  const label = { correct: "prefers the correct key steps", wrong: "prefers the wrong key steps", none: "no key step on one side" };
  return element("div", { class: "panel run" },
    element("h4", {}, runName(run), " ", verdict(preferred, label[preferred])),
    table("Log-probability per token (nats)", ["", "correct", "wrong", "margin"], [
      ["whole chain", value(logps.chosen), value(logps.rejected), value(outcome.margin)],
      ["key steps", value(logps.chosen_key), value(logps.rejected_key), value(outcome.key_margin)],
    ]),
    turn ? element("p", {}, "Greedy decoding leaves the correct chain at ", words(JSON.stringify(turn.token), "code"), ", for ",
      words(JSON.stringify(turn.instead), "code"), ` (${nats(turn.logp)}${turn.at_key ? "; at a key step" : ""}).`)
      : element("p", {}, "Greedy decoding would generate the correct chain."),
    greedy && [
      element("p", {}, "After the shared prefix it takes ",
        { right: "the right branch", wrong: "the wrong branch", neither: "neither branch" }[greedy.branch], ": ",
        verdict(greedy.verdict), greedy.cut_off && " (cut off)"),
      textBox(greedy.response, ["\u2026", greedy.response], "Continuation"),
    ]);
}

function response(sample) {
  const layers = sample.thoughts ? [[[0, sample.thoughts, "thoughts", "thoughts, which are not graded"]]] : [];
  if (sample.span) layers.push([[...sample.span, "answer", "the answer, strict extraction"]]);
  if (sample.lenient_span) layers.push([[...sample.lenient_span, "answer lenient", "the answer, lenient extraction"]]);
  return textBox(sample.response, sample.response ? marked(sample.response, layers) : element("em", {}, "(empty)"), "Response");
}

function answerLine(sample) {
  return [verdict(sample.verdict), " ", sample.value !== undefined && ["answer ", words(sample.value, "code")],
    sample.lenient_value !== undefined && [" lenient: ", words(sample.lenient_value, "code"), ` (${sample.lenient_verdict})`],
    sample.cut_off && element("span", { class: "verdict cut" }, " \u22ef cut off"), element("span", { class: "note" },
      ` ${sample.tokens} tokens${sample.weight === undefined ? "" : `, weight ${sample.weight.toFixed(3)}`}`)];
}

function evaluateCard(run, outcome) {
  const [first, ...others] = outcome.samples;
  return element("div", { class: "panel run" },
    element("h4", {}, runName(run), " ", verdict(outcome.verdict), outcome.of > 1 && element("span", { class: "note" },
      outcome.majority === undefined ? ` majority of ${outcome.of} samples` : [` weighted vote of ${outcome.of} samples, their majority: `,
        verdict(outcome.majority)])),
    element("p", {}, answerLine(first)), response(first),
    others.length > 0 && details(`${others.length} more ${others.length > 1 ? "samples" : "sample"}`, () =>
      others.map((sample) => [element("p", {}, answerLine(sample)), response(sample)]).flat()));
}

function article(item, place, redraw) {
  const tags = [item.task && ["Task", [item.task]], item.source && ["Source", [item.source]],
    item.mistake && ["Mistake", item.mistake], item.answer && ["Answer", [item.answer]], ...(item.facts || []).map(([a, b]) => [a, [b]])];
  const card = ([run, outcome]) => ("verdict" in outcome ? evaluateCard(run, outcome) : suiteCard(run, outcome));
  return [
    element("h3", { id: "item-title" }, words(item.id), element("span", { class: "note" }, ` ${place}`)),
    element("ul", { class: "tags" }, tags.filter(Boolean).map(([name, values]) => element("li", {},
      element("span", { class: "note" }, name), " ", values.map((value, index) => [index ? ", " : "", words(value)])))),
    prompt(item.prompt),
    dualChain(item, redraw),
    Object.keys(KINDS).map((kind) => {
      const runs = item.runs.filter(([run]) => data.runs[run].kind === kind);
      return runs.length > 0 && element("div", { class: "runs" }, runs.map(card));
    }),
  ];
}
