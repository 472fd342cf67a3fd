// The page above the items: scores, groups, learning curves, flips.
const GROUPS = { task: "By task", mistake: "By kind of mistake", source: "By source" };
const MOST_ROWS = 60;

const runsOf = (kind) => data.runs.map((run, index) => index).filter((index) => data.runs[index].kind === kind);
const kindsHere = () => Object.keys(KINDS).filter((kind) => runsOf(kind).length);

function section(id, title, ...content) {
  return element("section", { id, "aria-labelledby": `${id}-title` }, element("h2", { id: `${id}-title` }, title), content);
}

function header() {
  const themes = ["auto", "light", "dark"];
  let theme = 0;
  const toggle = element("button", { type: "button", class: "quiet", onclick: () => {
    theme = (theme + 1) % themes.length;
    document.documentElement.dataset.theme = themes[theme];
    toggle.textContent = `Theme: ${themes[theme]}`;
  } }, "Theme: auto");
  document.title = data.title;
  return [
    element("div", { class: "heading" }, words(data.title, "h1"), element("p", { class: "note" }, data.made_with)),
    toggle,
  ];
}

function navigation(sections) {
  return element("nav", { "aria-label": "Sections" }, sections.map((one) =>
    element("a", { href: `#${one.id}` }, one.querySelector("h2").textContent)));
}

function summary() {
  return section("summary", "Summary",
    data.notice && element("p", { class: "notice", role: "note" }, data.notice),
    element("div", { class: `cards ${data.runs.length > 6 ? "wide" : ""}` },
      kindsHere().map((kind) => (kind === "pairs" ? pairSummary() : kindSummary(kind)))),
    data.runs.some((run) => run.scores && run.kind !== "pairs") && element("p", { class: "note" },
      "Brackets and whiskers are 95% confidence intervals over items."));
}

function kindSummary(kind) {
  const runs = runsOf(kind);
  const labels = data.labels[kind];
  const main = data.runs[runs[0]].main;
  const rows = Object.entries(labels)
    .filter(([name]) => runs.some((run) => data.runs[run].scores[name]))
    .map(([name, about]) => [
      element("span", { title: about.help }, about.label + (about.lower_is_better ? "\u00a0\u2193" : "")),
      ...runs.map((run) => data.runs[run].scores[name] ? withInterval(data.runs[run].scores[name], about.unit) : "\u2013"),
    ]);
  rows.unshift(["Items", ...runs.map((run) => data.runs[run].items.toLocaleString("en"))]);
  const bars = runs.map((run) => [data.runs[run].name, `${data.runs[run].items} items`, [[run, data.runs[run].scores[main]]]]);
  const about = labels[main];
  return element("div", { class: "card" },
    element("h3", {}, `${KINDS[kind]}: ${about.label.toLowerCase()}`, element("span", { class: "note" }, ` ${about.help}`)),
    barChart(`${about.label} of each run`, bars, about.unit),
    table(`Scores${rows.some(([name]) => name.textContent?.endsWith("\u2193")) ? " (\u2193 lower is better)" : ""}`,
      ["", ...runs.map((run) => runName(run))], rows, "scores"),
    details("How it was measured", () => runs.map((run) => [
      element("h4", {}, runName(run)), facts(data.runs[run].facts),
    ]).flat()));
}

const facts = (list) => element("dl", { class: "facts" }, list.map(([name, value]) =>
  element("div", {}, element("dt", {}, name), element("dd", {}, words(value)))));

function pairSummary() {
  const run = data.runs[0];
  const tiles = Object.entries(data.labels.pairs).filter(([name]) => run.scores[name]).map(([name, about]) =>
    [about.label, shown(run.scores[name][0], about.unit), about.help]);
  return element("div", { class: "card" },
    element("div", { class: "tiles" }, tiles.map(([name, value, help]) => element("div", { class: "tile" },
      element("span", { class: "note" }, name), element("strong", {}, value), element("span", { class: "note" }, help)))),
    facts(run.facts));
}

function groups(group) {
  const figures = kindsHere().map((kind) => groupFigure(kind, group)).filter(Boolean);
  return figures.length ? section(`by-${group}`, GROUPS[group], figures) : null;
}

function groupFigure(kind, group) {
  const runs = runsOf(kind);
  const names = [...new Set(runs.flatMap((run) => data.runs[run].groups[group].map(([name]) => name)))];
  if (names.length < (group === "task" ? 1 : 2)) return null;
  const labels = data.labels[kind];
  const found = new Map(runs.map((run) => [run, new Map(data.runs[run].groups[group].map((row) => [row[0], row]))]));
  const known = Object.keys(labels).filter((score) =>
    runs.some((run) => data.runs[run].groups[group].some(([, , scores]) => scores[score])));
  const box = element("div", {});
  const draw = (score) => {
    const { unit } = labels[score];
    const rows = names.map((name) => {
      const counts = runs.map((run) => found.get(run).get(name)?.[1] || 0);
      return [name, String(Math.max(...counts)),
        runs.map((run) => [run, found.get(run).get(name)?.[2][score] || null])];
    });
    const title = `${labels[score].label} ${GROUPS[group].toLowerCase()}`;
    box.replaceChildren(
      barChart(title, rows.slice(0, MOST_ROWS), unit),
      rows.length > MOST_ROWS ? element("p", { class: "note" }, `The first ${MOST_ROWS} of ${rows.length}; all are in the table.`) : "",
      details("As a table", () => table(title, ["", "Items", ...runs.map((run) => runName(run))],
        rows.map(([name, items, bars]) => [words(name), items, ...bars.map(([, score]) => score ? withInterval(score, unit) : "\u2013")]))));
  };
  draw(data.runs[runs[0]].main);
  return element("div", { class: "card" },
    element("div", { class: "bar-head" }, element("h3", {}, KINDS[kind]),
      choice("Score", known.map((name) => [name, labels[name].label]), data.runs[runs[0]].main, draw)),
    runs.length > 1 && element("ul", { class: "legend" }, runs.map((run) => element("li", {}, runName(run)))),
    box);
}

function learning() {
  if (!data.training.length) return null;
  return section("learning", "Learning curves", data.training.map((training) => element("div", { class: "card" },
    element("h3", {}, words(training.name), element("span", { class: "note" }, " ", words(training.path))),
    training.stages.map((stage) => [
      stage.name && element("h4", {}, "Stage ", words(stage.name), !stage.finished && " (not finished)"),
      element("div", { class: "charts" }, stage.charts.map(([title, curves]) => curveFigure(title, curves))),
      !stage.charts.length && element("p", { class: "note" }, "Nothing was logged."),
      stage.charts.length > 0 && details("What the names mean", () => facts(stage.meanings)),
    ]))));
}

function curveFigure(title, curves) {
  const unit = title.endsWith("(share)") ? "share" : "nats";
  const steps = () => [...new Set(curves.flatMap(([, , points]) => points.map(([step]) => step)))].sort((a, b) => a - b);
  const columns = curves.map(([name, heldOut]) => [words(name), heldOut ? " (held out)" : ""]);
  return element("figure", {}, element("figcaption", {}, title), lineChart(title, curves, unit),
    details("As a table", () => {
      const values = curves.map(([, , points]) => new Map(points));
      return table(title, ["Step", ...columns], steps().map((step) =>
        [String(step), ...values.map((one) => (one.has(step) ? shown(one.get(step), unit) : ""))]));
    }));
}

const outcomeOf = (item, run) => (item.runs.find(([index]) => index === run) || [])[1] || null;

function isRight(outcome) {
  if (!outcome) return null;
  return "verdict" in outcome ? outcome.verdict === "correct" : outcome.key_preferred;
}

// fixed, broken, right (both) or wrong (both); null where one of the two did not see the item.
function flipOf(item, a, b) {
  const [before, after] = [isRight(outcomeOf(item, a)), isRight(outcomeOf(item, b))];
  if (before === null || after === null) return null;
  if (before === after) return before ? "right" : "wrong";
  return after ? "fixed" : "broken";
}

const FLIPS = { right: "both right", fixed: "fixed", broken: "broken", wrong: "both wrong" };

function flips(items, show) {
  if (!data.flips.length) return null;
  const partners = (run) => data.flips.flatMap(({ a, b }) => (a === run ? [b] : b === run ? [a] : []));
  const able = data.runs.map((_, index) => index).filter((run) => partners(run).length);
  let [a, b] = [data.flips[0].a, data.flips[0].b];
  const box = element("div", {});
  const fields = element("div", { class: "fields" });
  const draw = () => {
    if (!partners(a).includes(b)) b = partners(a)[0];
    fields.replaceChildren(
      choice("From", able.map(runOption), String(a), (value) => { a = Number(value); draw(); }, { id: "flip-a" }),
      choice("To", partners(a).map(runOption), String(b), (value) => { b = Number(value); draw(); }, { id: "flip-b" }));
    box.replaceChildren(...flipFigure(items, a, b, show));
  };
  draw();
  return section("flips", "Flips between two runs", element("div", { class: "card" }, fields, box));
}

function flipFigure(items, a, b, show) {
  const counts = { right: 0, fixed: 0, broken: 0, wrong: 0 };
  const tasks = new Map();
  for (const item of items) {
    const flip = flipOf(item, a, b);
    if (!flip) continue;
    counts[flip] += 1;
    if (!tasks.has(item.task)) tasks.set(item.task, { right: 0, fixed: 0, broken: 0, wrong: 0 });
    tasks.get(item.task)[flip] += 1;
  }
  const known = data.flips.find((pair) => (pair.a === a && pair.b === b) || (pair.a === b && pair.b === a));
  const turned = known.a !== a;
  const [value, low, high] = turned ? known.difference.map((one) => -one) : known.difference;
  const points = (number) => minus((100 * number).toFixed(1));
  const [from, to] = turned ? [high, low] : [low, high];
  const what = data.runs[a].kind === "suite" ? "prefers the correct key steps" : "answers right";
  const p = known.p_value < 0.001 ? "< 0.001" : `= ${known.p_value.toFixed(3)}`;
  const open = (flip) => element("button", { type: "button", disabled: !counts[flip], onclick: () => show(flip, a, b) },
    `Show the ${counts[flip]} ${FLIPS[flip]}`);
  return [
    element("p", {}, "Of ", String(known.items), " items in both, ", badge(b), ` ${what} on ${counts.fixed} where `, badge(a),
      ` does not (fixed), and the other way round on ${counts.broken} (broken): a difference of `,
      element("strong", {}, `${value > 0 ? "+" : ""}${points(value)} points`),
      ` [${points(from)}, ${points(to)}]; exact McNemar test p ${p}.`),
    ...stackedBar("Flips", Object.entries(FLIPS).map(([flip, name]) => [flip, counts[flip], name])),
    element("div", { class: "buttons" }, open("fixed"), open("broken")),
    details("By task", () => table("Flips by task", ["", ...Object.values(FLIPS)],
      [...tasks].map(([task, one]) => [words(task), ...Object.keys(FLIPS).map((flip) => String(one[flip]))]))),
  ];
}
