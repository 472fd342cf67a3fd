// Every element of the page is made here. Data becomes text nodes and titles, and nothing else.
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const element = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const shape = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Data that may be of either direction must not turn what stands beside it.
const words = (text, tag = "bdi") => element(tag, { dir: "auto" }, String(text));

// Characters as Python counts them, by which all spans are given: not UTF-16 units.
function characters(text) {
  if (!/[\ud800-\udfff]/.test(text)) return { length: text.length, slice: (a, b) => text.slice(a, b) };
  const list = Array.from(text);
  return { length: list.length, slice: (a, b) => list.slice(a, b).join("") };
}

// The text, with elements around the spans. A layer is a sorted list of disjoint
// [start, end, class, title]; where layers overlap, an element has the classes of both.
function marked(text, layers, tag = "mark") {
  const chars = characters(text);
  const cuts = new Set([0, chars.length]);
  for (const layer of layers) {
    for (const [start, end] of layer) cuts.add(Math.min(start, chars.length)).add(Math.min(end, chars.length));
  }
  const places = [...cuts].sort((a, b) => a - b);
  const at = layers.map(() => 0);
  const nodes = [];
  for (let place = 0; place + 1 < places.length; place += 1) {
    const [start, end] = [places[place], places[place + 1]];
    const active = [];
    layers.forEach((layer, number) => {
      while (at[number] < layer.length && layer[at[number]][1] <= start) at[number] += 1;
      const span = layer[at[number]];
      if (span && span[0] <= start && span[1] >= end) active.push(span);
    });
    const piece = chars.slice(start, end);
    if (!active.length) nodes.push(piece);
    else {
      const title = active.map((span) => span[3]).filter(Boolean).join("; ");
      nodes.push(element(tag, { class: active.map((span) => span[2]).join(" "), title: title || null }, piece));
    }
  }
  return nodes;
}

function table(caption, head, rows, className = "") {
  const cell = (content, index) => element(index ? "td" : "th", { scope: index ? null : "row" }, content);
  return element("div", { class: `scroll ${className}`, tabindex: 0, role: "region", "aria-label": caption },
    element("table", {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, head.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map(cell))))));
}

// Its content is only made when it is opened.
function details(summary, make, open = false) {
  const node = element("details", {}, element("summary", {}, summary));
  const build = () => node.open && node.children.length === 1 && node.append(...[make()].flat());
  node.addEventListener("toggle", build);
  if (open) { node.open = true; build(); }
  return node;
}

function choice(label, options, value, change, attributes = {}) {
  const select = element("select", { ...attributes, onchange: () => change(select.value) },
    options.map(([key, name]) => element("option", { value: key, selected: key === value }, name)));
  return element("label", { class: "field" }, element("span", {}, label), select);
}

// A model keeps its letter and colour over runs of several kinds.
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const modelOf = (run) => [...new Set(data.runs.map(({ name }) => name))].indexOf(data.runs[run].name);
const letter = (run) => LETTERS[modelOf(run)] || `#${modelOf(run) + 1}`;
const paint = (number) => `c${number % 6}`;
const badge = (run) => element("span", { class: `badge ${paint(modelOf(run))}` }, letter(run));
const runName = (run) => [badge(run), " ", words(data.runs[run].name)];
const KINDS = { evaluate: "Answers", suite: "Preference between chains", pairs: "Dual CoTs" };
const kindName = (run) => KINDS[data.runs[run].kind].toLowerCase();
const runOption = (run) => {
  const several = new Set(data.runs.map(({ kind }) => kind)).size > 1;
  return [String(run), `${letter(run)}: ${data.runs[run].name}${several ? ` (${kindName(run)})` : ""}`];
};

const minus = (text) => text.replace("-", "\u2212");

function shown(value, unit) {
  if (value === null || value === undefined) return "\u2013";
  if (unit === "share") return `${(100 * value).toFixed(1)}%`;
  return minus(value.toFixed(unit === "count" ? 1 : 3));
}

function withInterval([value, low, high], unit) {
  const bound = (number) => (unit === "share" ? (100 * number).toFixed(1) : minus(number.toFixed(3)));
  const known = low !== null && high !== null;
  return [shown(value, unit), known && element("span", { class: "interval" }, ` [${bound(low)}, ${bound(high)}]`)];
}

const VERDICTS = {
  correct: ["\u2713", "right"], wrong: ["\u2717", "wrong"], unparsed: ["?", "unparsed"],
  none: ["\u25cb", "no key step"],
};

function verdict(name, label = null) {
  const [sign, text] = VERDICTS[name];
  return element("span", { class: `verdict ${name}`, title: label || text },
    element("span", { "aria-hidden": "true" }, sign), " ", label || text);
}
