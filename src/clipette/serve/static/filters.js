// Filters over the collection's columns: controls, and the sentence that the server parses.

import { h } from "./dom.js";

const FEW = 24; // values shown as buttons
const PLAIN = /^[\p{L}][\p{L}\p{N}_]*$/u;
const WORDS = new Set(["and", "or", "not", "in", "between", "like", "is", "null", "true", "false"]);

const name = (column) =>
  PLAIN.test(column) && !WORDS.has(column.toLowerCase()) ? column : `"${column.replaceAll('"', '""')}"`;
const quoted = (text) => `'${text.replaceAll("'", "''")}'`;
const number = (text) => (/^[-+]?(\d+\.?\d*|\.\d+)$/.test(text.trim()) ? text.trim() : null);

/** `column: values` and the user's own words as one filter, or null. `columns`: name to bool, int, float or text. */
export function filterOf(filters, own, columns) {
  const parts = [];
  for (const [column, values] of Object.entries(filters)) {
    if (!(column in columns) || !values.length) continue;
    const part = partOf(column, columns[column], values);
    if (part) parts.push(part);
  }
  if (own.trim()) parts.push(parts.length ? `(${own.trim()})` : own.trim());
  return parts.length ? parts.join(" AND ") : null;
}

function partOf(column, type, values) {
  if (type === "text") return `${name(column)} IN (${values.map(quoted).join(", ")})`;
  if (type === "bool") return values.length === 1 ? `${name(column)} = ${values[0] === "true"}` : null;
  const [low, high] = range(values);
  const ends = [number(low) && `${name(column)} >= ${number(low)}`, number(high) && `${name(column)} <= ${number(high)}`];
  return ends.filter(Boolean).join(" AND ");
}

const range = (values) => {
  const [low = "", high = ""] = (values[0] ?? "..").split("..");
  return [low, high];
};

/** What one column's filter says, for the chip that removes it. */
export function describe(column, type, values) {
  if (type === "text" || type === "bool") return `${column}: ${values.join(" or ")}`;
  const [low, high] = range(values);
  if (low && high) return `${column}: ${low} to ${high}`;
  return low ? `${column}: from ${low}` : `${column}: up to ${high}`;
}

/** Values of text columns that the server has told or results have shown, so that a click can filter by them. */
export class Seen {
  constructor() {
    this.told = {};
    this.counts = new Map();
    this.items = new Set();
  }

  /** Notes the metadata of an item that was not seen before. */
  add({ key, meta }) {
    if (this.items.has(key) || this.items.size > 20000) return;
    this.items.add(key);
    for (const [column, value] of Object.entries(meta)) {
      if (typeof value !== "string" || !value || value.length > 60) continue;
      if (!this.counts.has(column)) this.counts.set(column, new Map());
      const counts = this.counts.get(column);
      counts.set(value, (counts.get(value) ?? 0) + 1);
    }
  }

  /** Notes all values of columns that have few, as /v1/info tells them. */
  tell(values) {
    this.told = values;
  }

  /** What was told; of other columns, values that come again: a column of file names or numbers has none to choose from. */
  of(column) {
    const counts = [...(this.counts.get(column) ?? [])];
    const often = counts.filter(([, count]) => count > 1).length;
    const told = Object.hasOwn(this.told, column) ? this.told[column] : [];
    if (!told.length && counts.length > 3 && often < counts.length / 4) return [];
    return [...new Set([...told, ...counts.map(([value]) => value)])].sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
  }
}

/** One column's control. `onChange(values)` is called with its new values. */
export function control(column, type, values, seen, onChange) {
  if (type === "text") return textControl(column, values, seen.of(column), onChange);
  if (type === "bool") return choices(column, ["true", "false"], values, (next) => onChange(next.slice(-1)));
  return rangeControl(column, type, values, onChange);
}

function legend(column) {
  return h("legend", { text: column.replaceAll("_", " ") });
}

function choices(column, all, values, onChange, ...more) {
  const box = (value) =>
    h(
      "button",
      {
        type: "button",
        class: "choice",
        "aria-pressed": values.includes(value) ? "true" : "false",
        data: { value },
        on: { click: () => onChange(values.includes(value) ? values.filter((each) => each !== value) : [...values, value]) },
      },
      value,
    );
  return h("fieldset", { data: { column } }, legend(column), h("div", { class: "choices" }, all.map(box)), more);
}

function textControl(column, values, known, onChange) {
  const all = [...new Set([...values, ...known])];
  const id = `values-${column}`;
  const add = () => {
    const value = input.value.trim();
    input.value = "";
    if (value && !values.includes(value)) onChange([...values, value]);
  };
  const input = h("input", {
    type: "text",
    list: id,
    placeholder: all.length ? "another value" : "value",
    "aria-label": `Only where ${column} is`,
    on: {
      change: () => setTimeout(add), // once the focus has moved on
      keydown: (event) => {
        if (event.key !== "Enter") return;
        event.preventDefault();
        add();
      },
    },
  });
  const few = all.slice(0, Math.max(FEW, values.length));
  const rest = h("datalist", { id }, all.slice(few.length).map((value) => h("option", { value })));
  return choices(column, few, values, onChange, input, rest);
}

function rangeControl(column, type, values, onChange) {
  const [low, high] = range(values);
  const end = (value, words) =>
    h("input", {
      type: "number",
      step: type === "int" ? 1 : "any",
      value,
      placeholder: words,
      "aria-label": `${column} ${words}`,
      on: { change: () => onChange(first.value || last.value ? [`${first.value}..${last.value}`] : []) },
    });
  const first = end(low, "from");
  const last = end(high, "to");
  return h("fieldset", { data: { column } }, legend(column), h("div", { class: "range" }, first, h("span", { text: "to" }), last));
}
