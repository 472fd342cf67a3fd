const data = JSON.parse(document.getElementById("data").textContent);

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function draw(items) {
  const list = items.length ? browser(items) : null;
  const sections = [
    data.runs.length ? summary() : null, ...Object.keys(GROUPS).map(groups), learning(),
    list && flips(items, list.show), list?.root,
  ].filter(Boolean);
  document.getElementById("top").append(...header(), navigation(sections));
  document.getElementById("main").replaceChildren(...sections);
  list?.start();
  document.documentElement.dataset.ready = Math.round(performance.now());
}

unpack(data.items).then(draw).catch((error) => {
  const why = typeof DecompressionStream === "undefined" ? "it is too old to unpack the items" : String(error);
  document.getElementById("main").replaceChildren(
    element("p", { class: "notice", role: "alert" }, `This browser cannot show the page: ${why}.`));
  throw error;
});
