// What must hold for any report's page; the value of this expression is a list of complaints.
(() => {
  const found = [];
  const say = (text) => found.push(text);
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    say(`overflow: ${root.scrollWidth} > ${root.clientWidth}`);
  }
  for (const box of document.querySelectorAll("body *")) {
    const head = box.closest("thead");
    if (box.closest(".skip, .hidden") || (head && getComputedStyle(head).position === "absolute")) continue;
    const edge = box.getBoundingClientRect().right;
    if (edge > root.clientWidth + 0.5) say(`beyond the edge: ${box.outerHTML.slice(0, 80)}`);
    if (getComputedStyle(box).overflowX !== "visible" && box.scrollWidth > box.clientWidth) say(`cut: ${box.outerHTML.slice(0, 80)}`);
  }

  const headings = [...document.querySelectorAll("h1, h2, h3, h4")];
  const levels = headings.map((heading) => Number(heading.tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1) say("not one h1");
  levels.forEach((level, index) => {
    if (index > 0 && level > levels[index - 1] + 1) say(`heading skipped at ${index}`);
    if (!headings[index].textContent.trim()) say(`empty heading at ${index}`);
  });
  for (const section of document.querySelectorAll("section")) {
    if (!document.getElementById(section.getAttribute("aria-labelledby"))) say("section unnamed");
  }
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  if (new Set(ids).size !== ids.length) say("an id twice");
  for (const link of document.querySelectorAll("a")) {
    if (!document.getElementById(link.hash.slice(1))) say(`dead link ${link.href}`);
  }

  for (const table of document.querySelectorAll("table")) {
    if (!table.caption || !table.caption.textContent.trim()) say("table without a caption");
    for (const head of table.querySelectorAll("thead th")) {
      if (head.scope !== "col" || !head.textContent.trim()) say("column without a head");
    }
    for (const row of table.tBodies[0].rows) {
      if (row.cells[0].tagName !== "TH" || row.cells[0].scope !== "row") say("row without a head");
      if (row.cells.length !== table.tHead?.rows[0].cells.length) say("row of another length");
      for (const cell of row.cells) if (!cell.textContent.trim()) say("blank cell");
    }
  }
  for (const image of document.images) {
    if (!image.alt.trim()) say("image without alternative text");
    if (!image.src.startsWith("data:image/png;base64,")) say(`image from ${image.src.slice(0, 40)}`);
    if (!image.complete || image.naturalWidth === 0) say("image that does not decode");
  }
  for (const mark of document.querySelectorAll(".mark")) {
    if (!mark.querySelector(".sign").textContent.trim()) say("a mark by colour alone");
  }
  if (document.scripts.length > 0) say("a script");
  if (document.querySelector("iframe, object, embed, form, link:not([rel=icon])")) say("foreign element");
  for (const one of document.querySelectorAll("*")) {
    for (const { name } of one.attributes) if (name.startsWith("on")) say(`handler ${name}`);
  }

  // Contrast as WCAG 2 has it: 4.5 for text, 3 for large text.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([red, green, blue]) => {
    const [r, g, b] = [red, green, blue].map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = rgba(getComputedStyle(one).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba(getComputedStyle(document.body).backgroundColor);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("script, style, template")) continue;
    if (!element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const [one, two] = [rgba(style.color), background(element)].map(luminance);
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) {
      say(`contrast ${ratio.toFixed(2)}: ${walker.currentNode.data.trim().slice(0, 40)}`);
    }
  }
  return found;
})()
