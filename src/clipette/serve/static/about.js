// What is served and how well: the model and its card, the index and its measured recall.

import { byId, counted, h, size } from "./dom.js";
import { markdown } from "./markdown.js";

const KEYS = [
  ["/", "to the search box"],
  ["Enter", "search; open a result"],
  ["Esc", "take the picture or the words away; close"],
  ["Arrows", "between results; from the box down into them"],
  ["m", "more like this"],
  ["+ and -", "mark a result right or wrong"],
];

/** As search.js. */
export function start(info) {
  const { model, index, limits, version } = info;
  byId("view-about").replaceChildren(
    h("div", { class: "heading" }, h("h1", { text: index.name || "This collection" }), h("p", { class: "soft", text: `${counted(index.items, "item")}, searched with ${model.name}. Clipette ${version}.` })),
    h(
      "div",
      { class: "columns" },
      h("div", {}, recall(index), section("Index", indexFacts(index))),
      h("div", {}, section("Model", modelFacts(model)), section("Keyboard", KEYS.map(([key, what]) => [h("kbd", { text: key }), what])), programs(limits)),
    ),
    model.card && h("section", { class: "panel card-text" }, h("h2", { text: "Model card" }), markdown(model.card)),
  );
}

function programs(limits) {
  return h(
    "section",
    { class: "panel" },
    h("h2", { text: "For programs" }),
    h("p", {}, "Everything on this page goes through a public API: ", h("a", { href: "openapi.json", text: "its description" }), "."),
    facts([
      ["largest picture", `${size(limits.max_image_bytes)}, ${Math.round(limits.max_image_pixels / 1e6)} megapixels`],
      ["most results", String(limits.max_k)],
      ["most labels", String(limits.max_labels)],
      ["time limit", `${limits.timeout_seconds} s`],
    ]),
  );
}

const section = (title, rows) => h("section", { class: "panel" }, h("h2", { text: title }), facts(rows));
const facts = (rows) => h("dl", {}, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));

function indexFacts(index) {
  const columns = Object.entries(index.columns).map(([name, type]) => `${name} (${type})`);
  const rows = [["items", index.items.toLocaleString("en")]];
  if (index.model) rows.push(["built by", index.model]);
  rows.push(["searched by", index.mixed_space ? "another model of the same space" : "the model that built it"]);
  rows.push(["“nothing fits”", index.calibrated ? "calibrated on this collection" : "not calibrated"]);
  rows.push(["columns", columns.join(", ") || "none"], ["writes so far", index.generation.toLocaleString("en")]);
  for (const [name, value] of Object.entries(index.details)) {
    if (["string", "number", "boolean"].includes(typeof value) && value !== "") rows.push([name.replaceAll("_", " "), typeof value === "number" ? value.toLocaleString("en") : String(value)]);
  }
  return rows;
}

function modelFacts(model) {
  const reads = [model.can_encode_text && "texts", model.can_encode_images && "pictures"].filter(Boolean).join(" and ");
  return [
    ["name", model.name],
    ["reads", reads],
    ["width", String(model.dim)],
    ["embedding space", h("code", { text: model.space })],
    ["scale, bias", `${model.logit_scale.toPrecision(4)}, ${model.logit_bias.toPrecision(3)}`],
  ];
}

/** How /v1/info calls what was measured, in words. */
const SHARES = { all: "without a filter", "10%": "with a filter that keeps 10 %", "1%": "with a filter that keeps 1 %" };

function recall(index) {
  const { k = 10, queries, asked, met } = index.details.recall ?? {};
  const order = Object.keys(SHARES);
  const measured = Object.entries(index.recall ?? {}).filter(([, value]) => Number.isFinite(value));
  measured.sort(([one], [other]) => order.indexOf(one) - order.indexOf(other));
  const bar = ([name, value]) => {
    const element = h("li", {}, h("span", { class: "name", text: SHARES[name] ?? name }), h("span", { class: "part", text: value.toFixed(3) }), h("span", { class: "track", "aria-hidden": "true" }, h("i")));
    element.style.setProperty("--part", `${(100 * value).toFixed(1)}%`);
    return element;
  };
  return h(
    "section",
    { class: "panel" },
    h("h2", { text: "Measured recall" }),
    h("p", { class: "soft", text: measured.length ? `The share of the ${k} nearest that this index finds, measured against exact search${queries ? ` with ${queries} queries` : ""}.` : "Not measured: clipette index verify does it." }),
    measured.length > 0 && h("ol", { class: "bars" }, measured.map(bar)),
    typeof asked === "number" && h("p", { class: "soft", text: `Asked for: ${asked}; ${met ? "met" : "not met"}.` }),
  );
}
