"use strict";
// Nothing here is needed to read the report: tables sort, raw samples draw as a plot.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = document.getElementById("words").dataset.sort;
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows];
      rows.sort((one, other) => {
        const order = compare(one.cells[column], other.cells[column]);
        return up ? order : -order;
      });
      body.append(...rows);
    });
  });
}

function compare(one, other) {
  const [first, second] = [one.dataset.sort, other.dataset.sort];
  if (first !== undefined && second !== undefined) return Number(first) - Number(second);
  if (first !== undefined) return -1;
  if (second !== undefined) return 1;
  return one.textContent.localeCompare(other.textContent);
}

for (const details of document.querySelectorAll("details.samples")) {
  details.addEventListener("toggle", () => draw(details), { once: true });
}

function draw(details) {
  const text = details.querySelector(".values");
  const values = text.textContent.trim().split(/\s+/).map(Number);
  const [width, height, left] = [640, 160, 64];
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const x = (index) => left + ((index + 0.5) / values.length) * (width - left - 8);
  const y = (value) => height - 12 - ((value - least) / (most - least || 1)) * (height - 24);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.setAttribute("aria-label", details.querySelector("summary").textContent);
  for (const value of new Set([least, most])) {
    svg.append(element("line", { x1: left, x2: width, y1: y(value), y2: y(value) }));
    const label = element("text", { x: left - 8, y: y(value) + 4 });
    label.textContent = value.toFixed(3);
    svg.append(label);
  }
  values.forEach((value, index) => {
    svg.append(element("circle", { cx: x(index), cy: y(value), r: 3 }));
  });
  text.before(svg);
}

function element(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
