// The search page: the question, its answer, and what comes between.

import { click, search, show, thumbnailOf } from "./api.js";
import * as detail from "./detail.js";
import { byId, counted, h, icon, later } from "./dom.js";
import { filterOf, Seen } from "./filters.js";
import { failureNotice, notice, Waiting } from "./notice.js";
import * as picture from "./picture.js";
import * as refine from "./refine.js";
import * as results from "./results.js";
import { samples } from "./samples.js";
import { fresh, now, update } from "./state.js";

const PAGE = 24;
const TYPING = 350; // milliseconds without a key before what was typed is searched

const seen = new Seen();
const marks = new Map();
let info = null;
let askForKey = null;
let waiting = null;
let running = null;
let asked = "";
let question = "";

/** Once the server has said what it has. `needKey(again)`: ask the user for a key, then call `again`. */
export function start(served, needKey) {
  info = served;
  askForKey = needKey;
  waiting = new Waiting(byId("notice"));
  seen.tell(info.index.values);
  refine.start(info, seen);
  const actions = { open, similar, mark, leave: () => byId("words").focus() };
  results.start(actions);
  detail.start({ ...actions, classify: (hit) => update({ ...fresh(), tab: "classify", labels: now().labels, item: hit.key }), marked: (key) => marks.get(key) });
  listenToForm();
  adaptToModel();
}

function listenToForm() {
  const words = byId("words");
  const typed = later(() => {
    const text = words.value.trim();
    if (text.length !== 1 && text !== now().q) ask({ q: text }, { replace: now().q !== "" });
  }, TYPING);
  words.addEventListener("input", typed);
  words.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" && results.focusAt(0)) event.preventDefault();
    if (event.key !== "Escape") return;
    event.preventDefault();
    typed.cancel();
    if (now().key || now().upload) ask({ key: "", upload: 0 });
    else if (words.value) {
      words.value = "";
      ask({ q: "" });
    } else words.blur();
  });
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    typed.cancel();
    waiting.stop({ forget: true });
    asked = "";
    ask({ q: words.value.trim() });
  });
  byId("choose").addEventListener("click", picture.choose);
  byId("asked-picture").querySelector("button").addEventListener("click", () => {
    ask({ key: "", upload: 0 });
    words.focus();
  });
  byId("balance").addEventListener("change", () => update({ balance: byId("balance").valueAsNumber }, { replace: true }));
  byId("more").addEventListener("click", () => update({ k: Math.min(wanted() + PAGE, info.limits.max_k) }, { replace: true }));
}

/** Another question: marks belong to the one before, and a picture that a reload has lost is not part of it. */
function ask(patch, how) {
  const lost = picture.upload(now().upload) ? {} : { upload: 0 };
  update({ ...lost, ...patch, liked: [], disliked: [], k: 0 }, how);
}

/** Search by a file of the user's. */
export function useFile(file) {
  const wrong = info.model.can_encode_images ? picture.complaint(file, info.limits) : "This model cannot read pictures.";
  if (wrong) {
    stop();
    answer({ icon: "image", title: "That cannot be searched", text: wrong });
    return;
  }
  ask({ upload: picture.keep(file), key: "" });
}

/** Search by an item of the collection. */
export const useItem = (key) => ask({ key, upload: 0, q: "" });

function similar(hit) {
  log(hit, "more_like_this");
  if (hit.kind === "text") ask({ q: hit.text ?? "", key: "", upload: 0 });
  else useItem(hit.key);
  scrollTo({ top: 0, behavior: "auto" });
  // On a phone the keyboard would cover what was asked for.
  (matchMedia("(pointer: fine)").matches ? byId("words") : byId("main")).focus({ preventScroll: true });
}

function open(hit) {
  log(hit, "open");
  detail.open(hit);
}

/** For evaluation: which result of which list was taken. The user's own picture is not part of it. */
function log(hit, action) {
  if (!info.features.clicks) return;
  const { q, key, upload, without } = now();
  const query = { ...(q && { text: q }), ...(key && { image_key: key }), image: Boolean(upload), negatives: without };
  click({ key: hit.key, rank: hit.rank, action, ...query, shown: results.current().map((each) => each.key) });
}

// ---------------------------------------------------------------- marks

function mark(hit, action) {
  if (marks.get(hit.key) === action) marks.delete(hit.key);
  else {
    marks.set(hit.key, action);
    log(hit, action);
  }
  results.renderMarks(marks);
  renderTray();
}

const marked = (action) => [...marks].filter(([, each]) => each === action).map(([key]) => key);

function setMarks({ liked, disliked }) {
  marks.clear();
  for (const key of liked) marks.set(key, "like");
  for (const key of disliked) marks.set(key, "dislike");
}

function renderTray() {
  const tray = byId("tray");
  const [liked, disliked] = [marked("like"), marked("dislike")];
  const { liked: before, disliked: against } = now();
  const applied = liked.join("\n") === before.join("\n") && disliked.join("\n") === against.join("\n");
  const inForce = before.length + against.length > 0;
  tray.hidden = !marks.size && !inForce;
  if (tray.hidden) return;
  const count = [liked.length && `${liked.length} right`, disliked.length && `${disliked.length} wrong`].filter(Boolean).join(", ") || "no marks";
  const clear = () => {
    marks.clear();
    results.renderMarks(marks);
    if (inForce) update({ liked: [], disliked: [] });
    else renderTray();
  };
  tray.replaceChildren(
    h("span", { text: applied ? `Refined by ${count}` : count }),
    h("button", { type: "button", class: "primary", text: "Refine the search", disabled: applied, on: { click: () => update({ liked, disliked }) } }),
    h("button", { type: "button", class: "plain", text: "Clear", on: { click: clear } }),
  );
}

// ---------------------------------------------------------------- asking

const wanted = () => Math.min(now().k || PAGE, info.limits.max_k);

/** The request of a state, without its picture. */
function requestOf(state) {
  const { q, key, upload, without, filters, where, kind, group, liked, disliked } = state;
  const request = { k: wanted(), kind, group, negatives: without, liked, disliked };
  if (q) request.text = q;
  if (key) request.image_key = key;
  const filter = filterOf(filters, where, info.index.columns);
  if (filter) request.where = filter;
  if (state.variety) request.mmr = 1 - state.variety / 100;
  if (info.index.calibrated && !state.all) request.threshold = "auto";
  const mixed = q && (key || upload);
  const weights = { negative: state.push / 100, ...(mixed && { text: state.balance / 100, image: 1 - state.balance / 100 }) };
  if (mixed || without.length || q.includes("-")) request.weights = weights;
  return request;
}

/** Put the state on the page, and ask the server where it asks something new. */
export function render(state) {
  const kept = picture.upload(state.upload);
  const lost = state.upload && !kept;
  if (byId("words").value.trim() !== state.q) byId("words").value = state.q;
  renderPicture(state, kept);
  byId("balance-row").hidden = !(state.q && (state.key || kept));
  byId("balance").value = state.balance;
  refine.render(state);
  const asks = Boolean(state.q || state.key || kept || state.liked.length);
  byId("view-search").dataset.asked = String(asks);
  const about = JSON.stringify([state.q, state.key, state.upload, state.liked, state.disliked]);
  if (about !== question) setMarks(state);
  question = about;
  renderTray();
  const signature = JSON.stringify([requestOf(state), state.upload]);
  if (signature === asked) return;
  asked = signature;
  waiting.stop({ forget: true });
  if (asks) run(state, kept?.file);
  else empty(lost);
}

function renderPicture(state, kept) {
  const chip = byId("asked-picture");
  chip.hidden = !state.key && !kept;
  const image = chip.querySelector("img");
  if (kept) {
    show(image, kept.url, { lazy: false });
    image.alt = `your picture ${kept.file.name}`;
  } else if (state.key) {
    show(image, thumbnailOf(state.key), { lazy: false });
    image.alt = `picture ${state.key}`;
  }
  byId("words").placeholder = chip.hidden ? placeholder() : "Add words (optional)";
}

function stop() {
  running?.abort();
  running = null;
  waiting.stop();
  byId("progress").hidden = true;
}

function empty(lost) {
  stop();
  asked = "";
  results.render([], marks);
  byId("status").textContent = "";
  byId("more").hidden = true;
  byId("notice").replaceChildren();
  byId("start").hidden = false;
  offer();
  if (lost) answer({ icon: "image", title: "The picture of this search is not here any more", text: "Your own pictures are not part of the address. Give it again to repeat the search." });
}

async function run(state, file) {
  stop();
  byId("start").hidden = true;
  byId("progress").hidden = false;
  const mine = (running = new AbortController());
  try {
    await search(requestOf(state), file, { signal: mine.signal, onPart: (part) => mine === running && tell(state, part) });
    waiting.stop({ forget: true });
  } catch (error) {
    if (error.name !== "AbortError" && mine === running) fail(error, state, file);
  } finally {
    if (mine === running) byId("progress").hidden = true;
  }
}

function fail(error, state, file) {
  const again = () => run(state, file);
  byId("status").textContent = "";
  if (error.kind === "busy" && waiting.start(error, again)) return;
  results.render([], marks);
  byId("more").hidden = true;
  if (error.kind === "key") askForKey(again);
  byId("notice").replaceChildren(failureNotice(error, info.limits, again));
}

// ---------------------------------------------------------------- answers

function tell(state, part) {
  const far = part.below_threshold && !state.all;
  const hits = far ? [] : part.hits;
  for (const hit of part.hits) seen.add(hit);
  refine.renderFilters(state);
  results.render(hits, marks);
  byId("more").hidden = far || !part.final || hits.length < wanted() || wanted() >= info.limits.max_k;
  byId("status").textContent = statusOf(hits, part, state);
  if (far) nothingClose(part);
  else if (!hits.length) nothingThere(state);
  else byId("notice").replaceChildren();
}

function statusOf(hits, part, state) {
  if (!hits.length) return "No results";
  const time = part.took_ms < 1 ? "under 1" : Math.round(part.took_ms).toLocaleString("en");
  const more = part.final ? "" : " · looking closer";
  // The score of a hit is its closeness to what was asked; these order the hits by more than that.
  const reordered = [(state.without.length || / -\S/.test(` ${state.q}`)) && "what is left out", state.variety && "variety"].filter(Boolean);
  const order = reordered.length ? ` · order also by ${reordered.join(" and ")}` : "";
  return `${hits.length.toLocaleString("en")} of ${info.index.items.toLocaleString("en")} · ${time} ms${more}${order}`;
}

function nothingClose(part) {
  const best = part.hits[0]?.score;
  const text =
    best === undefined || part.threshold === null || part.threshold === undefined
      ? "Nothing in this collection fits what you asked for."
      : `The closest scored ${best.toFixed(3)}; a match in this collection has ${part.threshold.toFixed(3)} or more.`;
  answer({ icon: "nothing", title: "Nothing close enough", text, actions: part.hits.length ? [["Show the nearest anyway", () => update({ all: true })]] : [] });
}

function nothingThere(state) {
  const filtered = state.where || Object.keys(state.filters).length;
  if (!info.index.items) answer({ icon: "nothing", title: "This collection is empty", text: "Add pictures with clipette index add." });
  else if (filtered) answer({ icon: "nothing", title: "Nothing passes the filters", text: "", actions: [["Remove the filters", () => update({ filters: {}, where: "" })]] });
  else answer({ icon: "nothing", title: "Nothing found", text: state.kind === "text" ? "This collection may hold pictures only." : "" });
}

let offered = false;

/** Pictures to begin from, once. */
async function offer() {
  if (offered) return;
  offered = true;
  const row = await samples(info, useItem, (hits) => hits.forEach((hit) => seen.add(hit)));
  if (row) byId("start").append(row);
  refine.renderFilters(now());
}

const answer = (what) => byId("notice").replaceChildren(notice(what));

// ---------------------------------------------------------------- the empty page

function placeholder() {
  if (!info.model.can_encode_text) return "This model reads pictures only";
  return matchMedia("(max-width: 560px)").matches ? "Describe a picture" : "Describe a picture, for example: a dog on a beach -people";
}

function adaptToModel() {
  const { can_encode_text: text, can_encode_images: images } = info.model;
  byId("words").disabled = !text;
  byId("choose").hidden = !images;
  const ways = text && images ? "Type a description, or give a picture." : text ? "Type a description." : "Give a picture.";
  const { images: pictures, texts: words } = info.index.details;
  const what = words === 0 ? counted(pictures, "picture") : counted(info.index.items, "item");
  byId("hero-line").textContent = `${what} on this server. ${ways}`;
  const tip = (name, title, ...words) => h("div", { class: "tip" }, icon(name), h("h2", { text: title }), h("p", { class: "soft" }, words));
  const tips = [
    text && tip("type", "Say it", "Plain words, as you would describe it. A minus leaves something out: ", h("code", { text: "beach -people" })),
    images && tip("clip", "Show it", "Drop a picture anywhere, paste one, or choose it. Add words to steer."),
    tip("up", "Steer it", "Mark what is right and what is wrong, and the search follows. Or ask for more like this."),
  ];
  byId("start").replaceChildren(h("div", { class: "tips" }, tips));
}
