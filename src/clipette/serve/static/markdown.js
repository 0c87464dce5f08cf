// A model card's Markdown as elements: headings, paragraphs, lists, tables, code. What else it holds stays text.

import { h } from "./dom.js";

/** The blocks of `text`. A card's headings become h3 and below: the page has its own above them. */
export function markdown(text) {
  const lines = text.replaceAll("\r", "").split("\n");
  const blocks = [];
  let at = 0;
  const take = (test) => {
    const from = at;
    while (at < lines.length && test(lines[at])) at += 1;
    return lines.slice(from, at);
  };
  while (at < lines.length) {
    const line = lines[at];
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    if (!line.trim() || line.trim() === "---") at += 1;
    else if (heading) {
      blocks.push(h(heading[1].length < 3 ? "h3" : "h4", {}, inline(heading[2])));
      at += 1;
    } else if (line.startsWith("```")) {
      at += 1;
      blocks.push(h("pre", { tabindex: 0 }, h("code", { text: take((each) => !each.startsWith("```")).join("\n") })));
      at += 1;
    } else if (line.startsWith("|")) blocks.push(table(take((each) => each.startsWith("|"))));
    else if (/^\s*[-*]\s/.test(line)) blocks.push(h("ul", {}, take((each) => /^\s*[-*]\s/.test(each)).map((each) => h("li", {}, inline(each.replace(/^\s*[-*]\s+/, ""))))));
    else if (/^\s*\d+[.)]\s/.test(line)) blocks.push(h("ol", {}, take((each) => /^\s*\d+[.)]\s/.test(each)).map((each) => h("li", {}, inline(each.replace(/^\s*\d+[.)]\s+/, ""))))));
    else {
      at += 1;
      const more = take((each) => each.trim() && !/^(#|```|\||\s*[-*]\s)/.test(each));
      blocks.push(h("p", {}, inline([line, ...more].join(" "))));
    }
  }
  return blocks;
}

function table(rows) {
  const cells = (row) => row.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const [head, ...rest] = rows.map(cells);
  const body = rest.filter((row) => !row.every((cell) => /^:?-+:?$/.test(cell)));
  const first = (row) => row.map((cell, place) => h(place ? "td" : "th", place ? {} : { scope: "row" }, inline(cell)));
  return h(
    "div",
    { class: "scroll" },
    h("table", {}, head.some(Boolean) && h("thead", {}, h("tr", {}, head.map((cell) => h("th", { scope: "col" }, inline(cell))))), h("tbody", {}, body.map((row) => h("tr", {}, first(row))))),
  );
}

/** `code`, **bold**, *stress* and [links](https://...) within a line. Only web addresses become links. */
function inline(text) {
  const parts = [];
  const pattern = /`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/g;
  let from = 0;
  for (const match of text.matchAll(pattern)) {
    parts.push(text.slice(from, match.index));
    from = match.index + match[0].length;
    const [, code, bold, stress, name, address] = match;
    if (code !== undefined) parts.push(h("code", { text: code }));
    else if (bold !== undefined) parts.push(h("strong", { text: bold }));
    else if (stress !== undefined) parts.push(h("em", { text: stress }));
    else parts.push(h("a", { href: address, target: "_blank", rel: "noopener noreferrer", text: name }));
  }
  parts.push(text.slice(from));
  return parts.filter(Boolean);
}
