// What is asked, kept in the address: a search can be shared, and Back works.

const DEFAULTS = Object.freeze({
  tab: "search",
  q: "", // words
  key: "", // an item as the query: more like this
  upload: 0, // a picture of this visit, by number: not in the address
  without: Object.freeze([]),
  push: 100, // strength of `without`, percent
  balance: 50, // words against picture, percent
  kind: "image",
  k: 0, // results wanted; 0: the first page
  variety: 0, // percent; 0: off
  group: false,
  all: false, // also what is not close enough
  filters: Object.freeze({}), // column: accepted values, or one "low..high"
  where: "",
  liked: Object.freeze([]),
  disliked: Object.freeze([]),
  item: "", // the picture to classify, by key
  labels: Object.freeze([]),
  template: "auto",
});

const TABS = ["search", "classify", "about"];
const KINDS = ["image", "text", "any"];
const LISTS = { without: "not", liked: "liked", disliked: "disliked", labels: "label" };
const STRINGS = { q: "q", key: "key", where: "where", item: "item", template: "template" };
const NUMBERS = { push: ["push", 0, 200], balance: ["balance", 5, 95], variety: ["variety", 0, 90], k: ["k", 0, 1000] };
const FLAGS = { group: "group", all: "all" };
const FILTER = "f.";

/** The state that an address holds; what makes no sense in it is left out. */
export function parse(search) {
  const given = new URLSearchParams(search);
  const state = { ...DEFAULTS, filters: {} };
  if (TABS.includes(given.get("tab"))) state.tab = given.get("tab");
  if (KINDS.includes(given.get("kind"))) state.kind = given.get("kind");
  for (const [name, param] of Object.entries(STRINGS)) state[name] = given.get(param) ?? DEFAULTS[name];
  for (const [name, param] of Object.entries(LISTS)) state[name] = given.getAll(param).filter(Boolean);
  for (const [name, param] of Object.entries(FLAGS)) state[name] = given.get(param) === "1";
  for (const [name, [param, low, high]] of Object.entries(NUMBERS)) {
    const number = Number.parseInt(given.get(param) ?? "", 10);
    if (Number.isFinite(number)) state[name] = Math.min(high, Math.max(low, number));
  }
  for (const param of new Set(given.keys())) {
    if (param.startsWith(FILTER)) state.filters[param.slice(FILTER.length)] = given.getAll(param).filter(Boolean);
  }
  return state;
}

/** The address of a state: only what differs from the defaults. */
export function format(state) {
  const params = new URLSearchParams();
  for (const name of ["tab", "kind"]) if (state[name] !== DEFAULTS[name]) params.set(name, state[name]);
  for (const [name, param] of Object.entries(STRINGS)) if (state[name] !== DEFAULTS[name]) params.set(param, state[name]);
  for (const [name, param] of Object.entries(LISTS)) for (const each of state[name]) params.append(param, each);
  for (const [name, param] of Object.entries(FLAGS)) if (state[name]) params.set(param, "1");
  for (const [name, [param]] of Object.entries(NUMBERS)) if (state[name] !== DEFAULTS[name]) params.set(param, state[name]);
  for (const [column, values] of Object.entries(state.filters)) for (const each of values) params.append(FILTER + column, each);
  const text = params.toString();
  return text ? `?${text}` : location.pathname;
}

let state = { ...parse(location.search), upload: history.state?.upload ?? 0 };
const listeners = [];

export const now = () => state;
export const fresh = () => ({ ...DEFAULTS });
export const onChange = (listener) => listeners.push(listener);

/** Change some of the state. `replace`: without a new step for Back (while typing). */
export function update(patch, { replace = false } = {}) {
  const next = { ...state, ...patch };
  const address = format(next);
  const same = address === format(state) && next.upload === state.upload;
  state = next;
  if (!same) history[replace ? "replaceState" : "pushState"]({ upload: state.upload }, "", address);
  for (const listener of listeners) listener(state);
}

addEventListener("popstate", (event) => {
  state = { ...parse(location.search), upload: event.state?.upload ?? 0 };
  for (const listener of listeners) listener(state);
});
