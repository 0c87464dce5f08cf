// The grid of results: cards that stay when a search changes, one tab stop, arrows between them.

import { show } from "./api.js";
import { byId, h, icon, iconButton } from "./dom.js";
import { draggable } from "./picture.js";

const cards = new Map();
let hits = [];
let actions = null;

/** `handlers`: `open(hit)`, `similar(hit)`, `mark(hit, "like" | "dislike")`, `leave()` upwards out of the grid. */
export function start(handlers) {
  actions = handlers;
  const grid = byId("results");
  grid.addEventListener("keydown", onKey);
  grid.addEventListener("focusin", (event) => {
    const card = event.target.closest("li");
    if (card) makeCurrent(card);
  });
}

export const current = () => hits;

/** What a hit is called, for alt texts and headings: its caption, else its key. */
export const nameOf = (hit) => hit.text || hit.key;

/** The cosine, with a real minus. */
export const scoreWords = (hit) => hit.score.toFixed(3).replace("-", "−");

/** `97 %` where the collection is calibrated, else "": that share of searches for what is not here score lower. */
export function confidenceWords({ confidence }) {
  return confidence === null || confidence === undefined ? "" : `${Math.floor(100 * confidence)} %`;
}

/** Show `found`, best first. A card whose item was there before is moved, not made again: its picture does not flicker. */
export function render(found, marks) {
  hits = found;
  const best = Math.max(...found.map((hit) => hit.score), 1e-6);
  const wanted = new Set(found.map((hit) => hit.key));
  for (const [key, card] of cards) {
    if (wanted.has(key)) continue;
    card.element.remove();
    cards.delete(key);
  }
  const grid = byId("results");
  found.forEach((hit, place) => {
    let card = cards.get(hit.key);
    if (!card) cards.set(hit.key, (card = build(hit)));
    card.fill(hit, best);
    if (grid.children[place] !== card.element) grid.insertBefore(card.element, grid.children[place] ?? null);
  });
  renderMarks(marks);
  const focusable = grid.querySelector('.shot[tabindex="0"]');
  if (!focusable && grid.firstElementChild) makeCurrent(grid.firstElementChild);
}

/** Show which results are liked and disliked; `marks`: key to "like" or "dislike". */
export function renderMarks(marks) {
  for (const [key, { element, like, dislike }] of cards) {
    const mark = marks.get(key);
    element.dataset.mark = mark ?? "";
    like.setAttribute("aria-pressed", String(mark === "like"));
    dislike.setAttribute("aria-pressed", String(mark === "dislike"));
  }
}

function build(first) {
  let hit = first;
  const shot = h("button", { type: "button", class: "shot", tabindex: -1, on: { click: () => actions.open(hit) } });
  if (first.kind === "image" && (first.thumbnail || first.image)) shot.append(pictureOf(first));
  else shot.append(h("q", { text: nameOf(first) }));
  const more = h("span", { class: "badge", hidden: true });
  shot.append(more);
  const meter = h("span", { class: "meter", "aria-hidden": "true" }, h("i"));
  const score = h("span", { class: "score" });
  const similar = iconButton("More like this (m)", "similar", () => actions.similar(hit), { tabindex: -1 });
  const like = iconButton("Right (+)", "up", () => actions.mark(hit, "like"), { tabindex: -1, "aria-pressed": "false", class: "like" });
  const dislike = iconButton("Wrong (-)", "down", () => actions.mark(hit, "dislike"), { tabindex: -1, "aria-pressed": "false", class: "dislike" });
  const element = h("li", { class: "card", data: { key: first.key } }, shot, meter, h("div", { class: "foot" }, score, similar, like, dislike));
  if (first.kind === "image") draggable(element, first.key);
  const fill = (next, best) => {
    hit = next;
    const words = scoreWords(hit);
    shot.setAttribute("aria-label", `${hit.rank}. ${nameOf(hit)}, score ${words}`);
    score.textContent = words;
    score.title = [`cosine ${hit.score.toFixed(4)}`, confidenceWords(hit)].filter(Boolean).join(", confidence ");
    meter.style.setProperty("--part", `${Math.max(0, (100 * hit.score) / best).toFixed(1)}%`);
    element.dataset.fits = String(hit.fits ?? "");
    more.textContent = `+${hit.duplicates.length}`;
    more.title = "look-alikes folded into this";
    more.hidden = !hit.duplicates.length;
  };
  return { element, fill, like, dislike };
}

function pictureOf(hit) {
  const image = h("img", {
    alt: nameOf(hit),
    width: 240,
    height: 240,
    decoding: "async",
    draggable: "false",
    on: {
      load: () => image.classList.add("ready"),
      error: () => image.replaceWith(h("span", { class: "gone" }, icon("image"), h("span", { text: "picture not available" }))),
    },
  });
  show(image, hit.thumbnail ?? hit.image);
  return image;
}

/** One card holds the grid's tab stop, so that Tab leaves the grid instead of walking through it. */
function makeCurrent(card) {
  for (const each of byId("results").querySelectorAll('button[tabindex="0"]')) if (!card.contains(each)) each.tabIndex = -1;
  for (const each of card.querySelectorAll("button")) each.tabIndex = 0;
}

/** Move the focus to the result at `place`. */
export function focusAt(place) {
  const card = byId("results").children[place];
  if (!card) return false;
  const shot = card.querySelector(".shot");
  shot.focus({ preventScroll: true });
  shot.scrollIntoView({ block: "nearest" });
  return true;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const card = event.target.closest("li");
  if (!card) return;
  const place = [...card.parentElement.children].indexOf(card);
  const columns = getComputedStyle(card.parentElement).gridTemplateColumns.split(" ").length;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  const hit = hits[place];
  if (event.key in steps) {
    const target = place + steps[event.key];
    if (event.key === "ArrowUp" && target < 0) actions.leave();
    else if (!focusAt(Math.min(Math.max(target, 0), hits.length - 1))) return;
  } else if (event.key === "Home") focusAt(0);
  else if (event.key === "End") focusAt(hits.length - 1);
  else if (event.key === "m") actions.similar(hit);
  else if (event.key === "+") actions.mark(hit, "like");
  else if (event.key === "-") actions.mark(hit, "dislike");
  else return;
  event.preventDefault();
}
