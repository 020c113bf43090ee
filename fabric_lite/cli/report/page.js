"use strict";
// Without this script the page has all but the values under the pointer.
const data = JSON.parse(document.getElementById("data").textContent);
const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 6 });
const step = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const text = (value) => (typeof value === "string" ? value : !value || Math.abs(value) >= 1e-3 && Math.abs(value) < 1e7
  ? number.format(value) : String(+value.toPrecision(6)));

function element(kind, parent, content = "", name = "") {
  const made = parent.appendChild(document.createElement(kind));
  made.textContent = content;
  made.className = name;
  return made;
}

// Of points with the same step, the one that was logged last.
function nearest(line, x) {
  let best = 0;
  line.x.forEach((at, i) => { if (Math.abs(at - x) <= Math.abs(line.x[best] - x)) best = i; });
  return best;
}

document.querySelectorAll(".chart").forEach((chart, index) => {
  const { x: [left, right], y: [low, high], lines } = data[index];
  const plot = chart.querySelector(".plot"), area = chart.querySelector(".area");
  const cursor = chart.querySelector(".cursor"), tip = chart.querySelector(".tip");
  const spots = lines.map((line) => element("span", area, "", "spot " + line.phase));
  const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  let place = -1; // among the steps; -1 when nothing shows

  function show(next) {
    place = Math.max(-1, Math.min(steps.length - 1, next));
    [cursor, tip, ...spots].forEach((part) => { part.hidden = place < 0; });
    if (place < 0) return;
    const at = steps[place], across = (at - left) / (right - left);
    cursor.style.left = 100 * across + "%";
    tip.textContent = "";
    element("small", tip, "step " + step.format(at));
    lines.forEach((line, i) => {
      const found = nearest(line, at), value = line.y[found], own = line.x[found];
      const row = element("div", tip, "", line.phase);
      element("span", row, line.phase + (own === at ? "" : " (step " + step.format(own) + ")"));
      element("b", row, text(value));
      spots[i].hidden = typeof value === "string";
      spots[i].style.left = 100 * (own - left) / (right - left) + "%";
      spots[i].style.top = 100 * (high - value) / (high - low) + "%";
    });
    const room = area.clientWidth - tip.offsetWidth, wanted = across * area.clientWidth;
    const beside = wanted + 14 <= room ? wanted + 14 : wanted - 14 - tip.offsetWidth;
    tip.style.left = Math.max(-plot.offsetWidth + area.clientWidth, Math.min(room, beside)) + "px";
  }

  function follow(event) {
    const box = area.getBoundingClientRect();
    const x = left + (right - left) * (event.clientX - box.left) / box.width;
    show(nearest({ x: steps }, x));
  }

  area.addEventListener("pointermove", follow);
  area.addEventListener("pointerdown", follow);
  area.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") show(-1); });
  plot.addEventListener("blur", () => show(-1));
  plot.addEventListener("keydown", (event) => {
    const last = steps.length - 1;
    const next = { ArrowRight: place + 1, ArrowLeft: place < 0 ? last : Math.max(0, place - 1), Home: 0, End: last,
      PageDown: place + Math.ceil(last / 10), PageUp: Math.max(0, place - Math.ceil(last / 10)), Escape: -1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    show(next);
  });
  show(-1);
});

// An arrow, its reason and its callbacks stand out together.
document.querySelectorAll(".graph").forEach((graph) => {
  const arrows = [...graph.querySelectorAll(".arrow")];
  function pick(event) {
    const chosen = event.target.closest("[data-edge], [data-node]");
    graph.classList.toggle("picked", Boolean(chosen));
    graph.querySelectorAll(".on").forEach((part) => part.classList.remove("on"));
    if (!chosen) return;
    const { edge, node } = chosen.dataset;
    const ends = (arrow) => [arrow.dataset.to, ...[...arrow.querySelectorAll(".edge")].map((path) => path.dataset.from)];
    const on = arrows.filter((arrow) => (node === undefined ? arrow.dataset.edge === edge : ends(arrow).includes(node)));
    const nodes = new Set(on.flatMap(ends)), edges = new Set(on.map((arrow) => arrow.dataset.edge));
    if (node !== undefined) nodes.add(node);
    graph.querySelectorAll("[data-edge]").forEach((part) => part.classList.toggle("on", edges.has(part.dataset.edge)));
    graph.querySelectorAll("[data-node]").forEach((part) => part.classList.toggle("on", nodes.has(part.dataset.node)));
  }
  ["pointerover", "focusin"].forEach((kind) => graph.addEventListener(kind, pick));
  ["pointerleave", "focusout"].forEach((kind) => graph.addEventListener(kind, () => graph.classList.remove("picked")));
});
