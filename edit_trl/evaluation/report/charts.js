// Charts are drawn at the width they have, so that their text stays readable.
function chart(draw) {
  const box = element("div", { class: "chart" });
  let width = 0;
  const redraw = () => {
    const now = Math.floor(box.clientWidth);
    if (now && now !== width) box.replaceChildren(draw((width = now)));
  };
  new ResizeObserver(redraw).observe(box);
  return box;
}

const short = (text, room) => (text.length > room ? `${text.slice(0, Math.max(room - 1, 1))}\u2026` : text);
const canvas = (width, height, label, ...children) =>
  shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, children);
const label = (x, y, text, attributes = {}) => shape("text", { x, y, ...attributes }, text);

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(at);
  return found;
}

function domain(values, unit) {
  if (unit === "share") return [0, 1];
  const known = values.filter((value) => value !== null && value !== undefined);
  const [low, high] = [Math.min(0, ...known), Math.max(0, ...known)];
  return low === high ? [low, low + 1] : [low, high];
}

const tickText = (value, unit) =>
  (unit === "share" ? `${Math.round(100 * value)}%` : minus(String(Number(value.toPrecision(6)))));

// Bars with intervals. rows: [name, note, [[run, [value, low, high]], ...]].
function barChart(title, rows, unit) {
  const values = rows.flatMap(([, , bars]) => bars.flatMap(([, score]) => score || []));
  const [low, high] = domain(values, unit);
  const several = data.runs.length > 1;
  return chart((width) => {
    const narrow = width < 620;
    const left = narrow ? 26 : Math.min(300, width * 0.34);
    const right = 58;
    const size = 14;
    const x = (value) => left + ((value - low) / (high - low)) * (width - left - right);
    const parts = [];
    let y = 6;
    const top = y;
    for (const [name, note, bars] of rows) {
      const full = `${name} (${note})`;
      const text = short(name, (narrow ? width - 90 : left - 84) / 7);
      const heading = label(narrow ? 2 : left - 30, narrow ? y + 12 : y + 11, text,
        { class: "name", "text-anchor": narrow ? "start" : "end" });
      heading.append(shape("tspan", { class: "note", dx: 6 }, note), shape("title", {}, full));
      parts.push(heading);
      if (narrow) y += 18;
      for (const [run, score] of bars) {
        if (several) parts.push(label(left - 8, y + 11, letter(run), { class: "letter", "text-anchor": "end" }));
        if (score) parts.push(bar(run, score, unit, x, y, size, low, width));
        else parts.push(label(left + 4, y + 11, "\u2013", { class: "note" }));
        y += size + 3;
      }
      y += narrow ? 8 : 7;
    }
    const grid = ticks(low, high, Math.max(2, Math.floor((width - left) / 90))).flatMap((value) => [
      shape("line", { class: value === 0 ? "axis" : "grid", x1: x(value), x2: x(value), y1: top - 4, y2: y }),
      label(x(value), y + 14, tickText(value, unit), { class: "tick", "text-anchor": "middle" }),
    ]);
    return canvas(width, y + 20, title, grid, parts);
  });
}

function bar(run, [value, low, high], unit, x, y, size, floor, width) {
  const zero = x(Math.max(0, floor));
  const parts = [shape("rect", {
    class: `bar ${paint(modelOf(run))}`, x: Math.min(zero, x(value)), y, height: size, width: Math.abs(x(value) - zero), rx: 2,
  })];
  let end = x(value);
  if (low !== null && high !== null && low !== high) {
    const middle = y + size / 2;
    end = Math.max(end, x(high));
    for (const style of ["halo", "whisker"]) {
      parts.push(shape("path", {
        class: style,
        d: `M${x(low)} ${middle}H${x(high)}M${x(low)} ${middle - 4}v8M${x(high)} ${middle - 4}v8`,
      }));
    }
  }
  const text = label(Math.min(Math.max(end, zero) + 6, width - 52), y + 11, shown(value, unit), { class: "value" });
  return shape("g", {}, parts, text, shape("title", {}, `${letter(run)}: ${shown(value, unit)}` +
    (low === null ? "" : ` [${shown(low, unit)}, ${shown(high, unit)}]`)));
}

const DASHES = ["", "7 4", "2 3", "9 3 2 3", "12 4", "4 2"];
const MARKERS = [
  (x, y) => `M${x - 3.5} ${y}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0`,
  (x, y) => `M${x - 3} ${y - 3}h6v6h-6z`,
  (x, y) => `M${x} ${y - 4}l4 7h-8z`,
  (x, y) => `M${x} ${y - 4.5}l4 4.5l-4 4.5l-4 -4.5z`,
  (x, y) => `M${x - 3.5} ${y - 3.5}l7 7m0 -7l-7 7`,
  (x, y) => `M${x - 4} ${y}h8m-4 -4v8`,
];

// Lines over steps. curves: [name, held out, points]; the same metric has the same colour and marker.
function lineChart(title, curves, unit) {
  const names = [...new Set(curves.map(([name]) => name))];
  const points = curves.flatMap(([, , list]) => list).filter(([, value]) => value !== null);
  const steps = points.map(([step]) => step);
  const values = points.map(([, value]) => value);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  let [low, high] = unit === "share" ? [0, 1] : [Math.min(...values), Math.max(...values)];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const lines = curves.map(([name, heldOut, list]) => [names.indexOf(name), heldOut, list]);
  const drawn = chart((width) => {
    const height = Math.min(280, Math.max(200, width * 0.5));
    const [left, right, top, bottom] = [50, 12, 10, 34];
    const x = (step) => left + ((step - first) / (last - first || 1)) * (width - left - right);
    const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
    const grid = ticks(low, high, 5).flatMap((value) => [
      shape("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      label(left - 8, y(value) + 4, tickText(value, unit), { class: "tick", "text-anchor": "end" }),
    ]);
    const below = ticks(first, last, Math.max(2, Math.floor(width / 110))).map((step) =>
      label(x(step), height - bottom + 16, String(Math.round(step)), { class: "tick", "text-anchor": "middle" }));
    const axis = label((left + width - right) / 2, height - 3, "step", { class: "tick", "text-anchor": "middle" });
    return canvas(width, height, title, grid, below, axis, lines.map((line) => curve(line, x, y)));
  });
  return [drawn, legend(names, lines)];
}

function curve([number, heldOut, list], x, y) {
  const known = list.filter(([, value]) => value !== null);
  const path = known.map(([step, value], index) => `${index ? "L" : "M"}${x(step)} ${y(value)}`).join("");
  const every = Math.ceil(known.length / (heldOut ? 40 : 9));
  const marks = known.filter((_, index) => index % every === 0 || index === known.length - 1);
  return shape("g", { class: `curve ${paint(number)} ${heldOut ? "held-out" : ""}` },
    shape("path", { class: "line", d: path, "stroke-dasharray": DASHES[number % DASHES.length] }),
    marks.map(([step, value]) => shape("path", { class: "marker", d: MARKERS[number % MARKERS.length](x(step), y(value)) },
      shape("title", {}, `step ${step}: ${minus(String(value))}`))));
}

function legend(names, lines) {
  const entries = lines.map(([number, heldOut]) => element("li", {},
    shape("svg", { width: 34, height: 14, "aria-hidden": "true" },
      shape("g", { class: `curve ${paint(number)} ${heldOut ? "held-out" : ""}` },
        shape("path", { class: "line", d: "M1 7H33", "stroke-dasharray": DASHES[number % DASHES.length] }),
        shape("path", { class: "marker", d: MARKERS[number % MARKERS.length](17, 7) }))),
    " ", words(names[number]), heldOut && " (held out)"));
  return element("ul", { class: "legend" }, entries);
}

// One bar in parts. parts: [class, count, name].
function stackedBar(title, parts) {
  const total = parts.reduce((sum, [, count]) => sum + count, 0);
  const drawn = chart((width) => {
    let x = 0;
    const boxes = parts.filter(([, count]) => count).map(([style, count, name]) => {
      const size = (count / total) * width;
      const box = shape("g", {},
        shape("rect", { class: `part ${style}`, x: x + 1, y: 1, width: Math.max(size - 2, 1), height: 32, rx: 3 }),
        size > 34 && label(x + size / 2, 22, String(count), { class: "inside", "text-anchor": "middle" }),
        shape("title", {}, `${name}: ${count}`));
      x += size;
      return box;
    });
    return canvas(width, 34, `${title}: ${parts.map(([, count, name]) => `${name} ${count}`).join(", ")}`, boxes);
  });
  const key = parts.map(([style, count, name]) => element("li", {},
    shape("svg", { width: 16, height: 14, "aria-hidden": "true" },
      shape("rect", { class: `part ${style}`, x: 1, y: 1, width: 14, height: 12, rx: 2 })),
    ` ${name} ${count}`));
  return [drawn, element("ul", { class: "legend" }, key)];
}
