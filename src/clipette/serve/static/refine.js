// The refine panel and the chips that show what is in force.

import { byId, h, icon, toggle } from "./dom.js";
import { control, describe } from "./filters.js";
import { now, update } from "./state.js";

const KINDS = { image: "Pictures", text: "Texts", any: "Both" };

let info = null;
let seen = null;
let parts = null;
const controls = new Map();

/** Builds the panel once the server has said what there is. */
export function start(served, known) {
  info = served;
  seen = known;
  parts = build();
  const button = byId("refine-toggle");
  button.addEventListener("click", () => open(byId("refine").hidden));
  byId("refine").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    open(false);
    button.focus();
  });
}

function open(wanted) {
  byId("refine").hidden = !wanted;
  byId("refine-toggle").setAttribute("aria-expanded", String(wanted));
}

function build() {
  const without = h("input", {
    type: "text",
    id: "without",
    enterkeyhint: "done",
    placeholder: "people, text, …",
    maxlength: 200,
    on: { change: leaveOut, keydown: (event) => event.key === "Enter" && (event.preventDefault(), leaveOut()) },
  });
  const push = slider("push", "Strength", 0, 200, 20, (value) => update({ push: value }, { replace: true }));
  const kind = h(
    "div",
    { class: "segments", role: "radiogroup", "aria-label": "Show" },
    Object.entries(KINDS).map(([value, name]) =>
      h("label", {}, h("input", { type: "radio", name: "kind", value, on: { change: () => update({ kind: value }) } }), h("span", { text: name })),
    ),
  );
  const variety = toggle("variety-on", "Varied results", "Trade a little closeness for difference.", (on) => update({ variety: on ? 40 : 0 }));
  const amount = slider("variety", "How varied", 10, 90, 10, (value) => update({ variety: value }, { replace: true }));
  const group = toggle("group", "Group look-alikes", "Fold near-duplicates into one.", (on) => update({ group: on }));
  const close = toggle("close", "Say when nothing fits", "Otherwise the nearest are shown, however far.", (on) => update({ all: !on }));
  close.element.hidden = !info.index.calibrated;
  const where = h("input", {
    type: "text",
    id: "where",
    spellcheck: "false",
    maxlength: 4096,
    placeholder: "year > 2019 AND domain = 'photo'",
    on: { change: narrow, keydown: (event) => event.key === "Enter" && narrow() },
  });
  const filters = h("div", { class: "filters" });
  const kinds = h("div", { class: "field" }, h("span", { class: "label", text: "Show" }), kind);
  kinds.hidden = info.index.details.texts === 0;
  byId("refine").replaceChildren(
    h("div", { class: "field" }, h("label", { for: "without", text: "Leave out" }), without, push.element),
    kinds,
    h("div", { class: "field" }, variety.element, amount.element),
    h("div", { class: "field" }, group.element, close.element),
  );
  if (Object.keys(info.index.columns).length > 0) {
    const words = h("div", { class: "field" }, h("label", { for: "where", text: "Filter in words" }), where);
    byId("refine").append(h("details", { class: "field wide", open: true }, h("summary", { text: "Filters" }), filters, words));
  }
  return { without, push, kind, variety, amount, group, close, where, filters };
}

function leaveOut() {
  const terms = parts.without.value.split(",").map((term) => term.trim()).filter(Boolean);
  parts.without.value = "";
  const next = [...new Set([...now().without, ...terms])].slice(0, 16);
  if (terms.length) update({ without: next });
}

const narrow = () => update({ where: parts.where.value });

function slider(id, name, min, max, step, onChange) {
  const input = h("input", { type: "range", id: `${id}-slider`, min, max, step, on: { change: () => onChange(input.valueAsNumber) } });
  return { input, element: h("div", { class: "slide" }, h("label", { for: input.id, text: name }), input) };
}

function setFilter(column, values) {
  const filters = { ...now().filters };
  delete filters[column];
  if (values.length) filters[column] = values;
  update({ filters });
}

/** Puts the state into the controls. */
export function render(state) {
  parts.push.input.value = state.push;
  parts.push.element.hidden = !state.without.length;
  for (const radio of parts.kind.querySelectorAll("input")) radio.checked = radio.value === state.kind;
  parts.variety.input.checked = state.variety > 0;
  parts.amount.input.value = state.variety;
  parts.amount.element.hidden = !state.variety;
  parts.group.input.checked = state.group;
  parts.close.input.checked = !state.all;
  if (document.activeElement !== parts.where) parts.where.value = state.where;
  renderFilters(state);
  renderChips(state);
}

/** The controls of columns whose filter has changed, or of which results have shown new values. */
export function renderFilters(state) {
  for (const [column, type] of Object.entries(info.index.columns)) {
    const values = state.filters[column] ?? [];
    const signature = (of) => JSON.stringify([of, type === "text" ? seen.of(column) : []]);
    const shown = controls.get(column);
    if (shown?.signature === signature(values)) continue;
    const change = (next) => {
      // Fields of numbers show already what was typed; made anew they would lose the focus on its way to the next one.
      if (type === "int" || type === "float") controls.get(column).signature = signature(next);
      setFilter(column, next);
    };
    const element = control(column, type, values, seen, change);
    if (shown) replaceControl(shown.element, element);
    else parts.filters.append(element);
    controls.set(column, { element, signature: signature(values) });
  }
}

/** `next` in the place of `old`; what had the focus has it again. */
function replaceControl(old, next) {
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  old.replaceWith(next);
  if (!focused) return;
  const same = [...next.querySelectorAll("button")].find((each) => each.dataset.value === focused.dataset.value);
  (same ?? next.querySelector("input") ?? next.querySelector("button")).focus();
}

function renderChips(state) {
  const chips = [];
  const chip = (text, patch) =>
    chips.push(
      h("button", { type: "button", class: "chip", title: "Remove", on: { click: () => update(patch) } }, h("span", { text }), icon("close"), h("span", { class: "unseen", text: " (remove)" })),
    );
  for (const term of state.without) chip(`without ${term}`, { without: state.without.filter((each) => each !== term) });
  for (const [column, values] of Object.entries(state.filters)) {
    if (!(column in info.index.columns)) continue;
    const { [column]: _, ...others } = state.filters;
    chip(describe(column, info.index.columns[column], values), { filters: others });
  }
  if (state.where) chip(state.where, { where: "" });
  if (state.kind !== "image") chip(state.kind === "text" ? "texts" : "pictures and texts", { kind: "image" });
  if (state.variety) chip("varied", { variety: 0 });
  if (state.group) chip("look-alikes grouped", { group: false });
  if (state.all && info.index.calibrated) chip("also distant matches", { all: false });
  if (chips.length > 1) {
    const clear = { without: [], filters: {}, where: "", kind: "image", variety: 0, group: false, all: false };
    chips.push(h("button", { type: "button", class: "plain", text: "Clear all", on: { click: () => update(clear) } }));
  }
  byId("chips").replaceChildren(...chips);
  byId("chips").hidden = !chips.length;
  const count = byId("refine-toggle").querySelector(".count");
  count.textContent = String(chips.length > 1 ? chips.length - 1 : chips.length);
  count.hidden = !chips.length;
}
