const data = JSON.parse(document.getElementById("data").textContent);

async function unpack(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index += 1) bytes[index] = binary.charCodeAt(index);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// A notebook shows the page in a frame without an address, where a link to #id would lead to the notebook's own.
const framed = location.protocol === "about:";
if (framed) document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (!link) return;
  event.preventDefault();
  scrollTo(link.getAttribute("href").slice(1));
});

// Scrolls the page alone; `scrollIntoView` would scroll the notebook as well.
function scrollTo(id) {
  const below = document.getElementById("top").querySelector("nav").offsetHeight;
  document.documentElement.scrollTop = document.getElementById(id).offsetTop - below;
}

// Charts are drawn once the frame is in sight and move what is below them, so this goes on until the reader acts.
function beginWithItems() {
  const observer = new ResizeObserver(() => scrollTo("items"));
  observer.observe(document.getElementById("main"));
  for (const act of ["pointerdown", "keydown", "wheel", "touchstart"]) {
    document.addEventListener(act, () => observer.disconnect(), { once: true, passive: true });
  }
}

async function start() {
  const main = document.getElementById("main");
  const above = [data.runs.length ? summary() : null, ...Object.keys(GROUPS).map(groups), learning()].filter(Boolean);
  document.getElementById("top").append(...header());
  main.replaceChildren(...above);
  const items = await unpack(data.items);
  const list = items.length ? browser(items) : null;
  const below = list ? [flips(items, list.show), list.root].filter(Boolean) : [];
  main.append(...below);
  document.getElementById("top").append(navigation([...above, ...below]));
  list?.start();
  if (framed && data.runs[0]?.kind === "pairs") beginWithItems();
  document.documentElement.dataset.ready = Math.round(performance.now());
  view.tokens = await unpack(data.tokens);
  if (view.tokens.length) list?.redraw();
  document.documentElement.dataset.complete = Math.round(performance.now());
}

start().catch((error) => {
  const why = typeof DecompressionStream === "undefined" ? "it is too old to unpack the items" : String(error);
  document.getElementById("main").prepend(
    element("p", { class: "notice", role: "alert" }, `This browser cannot show all of the page: ${why}.`));
  throw error;
});
