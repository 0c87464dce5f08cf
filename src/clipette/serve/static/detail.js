// One result, large: the whole picture, what is known of it, and what can be done with it.

import { imageOf, link, show, thumbnailOf } from "./api.js";
import { byId, h, icon, iconButton } from "./dom.js";
import { confidenceWords, current, focusAt, nameOf, scoreWords } from "./results.js";

let actions = null;
let place = 0;
let back = true; // to the result, once closed

/** `handlers`: as the grid's, and `classify(hit)`, `marked(key)`. */
export function start(handlers) {
  actions = handlers;
  const dialog = byId("detail");
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("close", () => {
    if (back) focusAt(place);
    back = true;
  });
}

/** Open at a hit of the grid. */
export function open(hit) {
  place = Math.max(0, current().indexOf(hit));
  render();
  const dialog = byId("detail");
  if (!dialog.open) dialog.showModal();
  dialog.querySelector(".primary")?.focus();
}

export const close = () => byId("detail").close();

function leaveFor(work, hit) {
  back = false;
  close();
  work(hit);
}

function step(by) {
  const next = place + by;
  if (next < 0 || next >= current().length) return;
  place = next;
  render();
  const wanted = byId("detail").querySelector(by > 0 ? ".next" : ".previous");
  (wanted.disabled ? byId("detail").querySelector(".primary") : wanted).focus();
}

function render() {
  const hit = current()[place];
  const last = place === current().length - 1;
  byId("detail").setAttribute("aria-label", `Result ${hit.rank}: ${nameOf(hit)}`);
  byId("detail").replaceChildren(
    h(
      "div",
      { class: "stage" },
      hit.kind === "image" ? whole(hit) : h("blockquote", { text: nameOf(hit) }),
      iconButton("Previous", "left", () => step(-1), { class: "previous", disabled: place === 0 }),
      iconButton("Next", "right", () => step(1), { class: "next", disabled: last }),
    ),
    h("div", { class: "facts" }, facts(hit)),
    iconButton("Close (Esc)", "close", close, { class: "shut" }),
  );
}

function whole(hit) {
  const image = h("img", { alt: nameOf(hit), decoding: "async" });
  // The small picture stands there until the large one has come, and stays where it cannot be shown (TIFF, ...).
  if (hit.thumbnail) show(image, hit.thumbnail, { lazy: false });
  if (hit.image) {
    const large = h("img", { alt: "" });
    large.addEventListener("load", () => large.decode().then(() => { large.alt = image.alt; image.replaceWith(large); }, () => {}));
    show(large, hit.image, { lazy: false });
  }
  return image;
}

function facts(hit) {
  const mark = (action, name, picture) => {
    const button = h(
      "button",
      { type: "button", class: action, "aria-pressed": String(actions.marked(hit.key) === action) },
      icon(picture),
      h("span", { text: name }),
    );
    button.addEventListener("click", () => {
      actions.mark(hit, action);
      for (const each of button.parentElement.children) each.setAttribute("aria-pressed", String(each.classList.contains(actions.marked(hit.key) ?? "none")));
    });
    return button;
  };
  const act = (name, picture, work, kind) => h("button", { type: "button", class: kind, on: { click: () => leaveFor(work, hit) } }, icon(picture), h("span", { text: name }));
  const confidence = confidenceWords(hit);
  const rows = [["score", scoreWords(hit)], ["key", hit.key]];
  if (confidence) rows.splice(1, 0, ["confidence", `${confidence}: that many searches for what is not here score lower`]);
  for (const [name, value] of Object.entries(hit.meta)) if (value !== null && value !== "") rows.push([name.replaceAll("_", " "), String(value)]);
  return [
    h("p", { class: "soft", text: `Result ${hit.rank} of ${current().length}` }),
    h("h2", { text: hit.kind === "image" ? hit.text || hit.key : "A text" }),
    h(
      "div",
      { class: "acts" },
      hit.kind === "image" && act("More like this", "similar", actions.similar, "primary"),
      hit.kind === "text" && act("Search for this text", "search", actions.similar, "primary"),
      hit.kind === "image" && act("Classify", "tag", actions.classify),
      hit.image && link(h("a", { class: "button" }, icon("open"), h("span", { text: "Original" })), hit.image),
    ),
    h("div", { class: "acts", role: "group", "aria-label": "Is it what you looked for?" }, mark("like", "Right", "up"), mark("dislike", "Wrong", "down")),
    h("dl", {}, rows.map(([name, value]) => [h("dt", { text: name }), h("dd", { text: value })])),
    hit.duplicates.length > 0 && lookAlikes(hit),
  ];
}

function lookAlikes(hit) {
  const small = (key) => {
    const image = h("img", { alt: key, width: 72, height: 72 });
    show(image, thumbnailOf(key));
    return link(h("a", { title: key }, image), imageOf(key));
  };
  return h("div", { class: "alike" }, h("h3", { text: "Look-alikes" }), h("div", {}, hit.duplicates.slice(0, 24).map(small)));
}
