// Classify: a picture, labels typed by the user, and bars that follow.

import { classify, show, thumbnailOf } from "./api.js";
import { byId, h, icon, later } from "./dom.js";
import { failureNotice, notice, Waiting } from "./notice.js";
import * as picture from "./picture.js";
import { update } from "./state.js";

const TYPING = 250;
const SHOWN = 40;
const EXAMPLE = "a dog\na cat\na car";

let info = null;
let askForKey = null;
let waiting = null;
let running = null;
let asked = "";
let parts = null;

/** Labels of what was typed: one a line or between commas, each once. */
export const labelsOf = (text) => [...new Set(text.split(/[\n,;]/).map((label) => label.trim()).filter(Boolean))];

/** As search.js. */
export function start(served, needKey) {
  info = served;
  askForKey = needKey;
  parts = build();
  waiting = new Waiting(parts.notice);
  const { can_encode_text: text, can_encode_images: images } = info.model;
  if (!text || !images) {
    parts.labels.disabled = true;
    parts.notice.replaceChildren(notice({ icon: "tag", title: "This model cannot classify", text: `It reads ${text ? "texts" : "pictures"} only; labels need both.` }));
  }
  const typed = later(() => update({ labels: labelsOf(parts.labels.value) }, { replace: true }), TYPING);
  parts.labels.addEventListener("input", typed);
  parts.template.addEventListener("change", () => update({ template: parts.template.value.trim() || "auto" }, { replace: true }));
}

function build() {
  const image = h("img", { alt: "", hidden: true });
  const prompt = h("span", { class: "prompt" }, icon("image"), h("b", { text: "Choose a picture" }), h("span", { class: "soft", text: "or drop or paste one anywhere" }));
  const frame = h("button", { type: "button", class: "frame", on: { click: picture.choose } }, image, prompt);
  const labels = h("textarea", { id: "labels", rows: 5, maxlength: 20000, spellcheck: "false", placeholder: EXAMPLE, "aria-describedby": "labels-about" });
  const template = h("input", { id: "template", type: "text", list: "templates", maxlength: 500, spellcheck: "false" });
  const list = h("datalist", { id: "templates" }, ["auto", "single", "openai80", "a photo of a {}.", "a drawing of a {}.", "{}"].map((value) => h("option", { value })));
  const bars = h("ol", { class: "bars", "aria-label": "Chances" });
  const verdict = h("p", { class: "verdict", role: "status", "aria-live": "polite" });
  const shown = h("div", { role: "alert" });
  byId("view-classify").replaceChildren(
    h("div", { class: "heading" }, h("h1", { text: "What does it show?" }), h("p", { class: "soft", text: "Give a picture and the answers you can think of. No training: the labels are yours." })),
    h(
      "div",
      { class: "two" },
      h("div", {}, frame),
      h(
        "div",
        {},
        h("div", { class: "field" }, h("label", { for: "labels", text: "Labels" }), labels, h("small", { id: "labels-about", class: "soft", text: "One a line, or between commas." })),
        h("details", { class: "wording" }, h("summary", { text: "Wording" }), h("div", { class: "field" }, h("label", { for: "template", text: "Sentence around each label" }), template, list, h("small", { class: "soft", text: "auto lets the model choose; {} stands for the label." }))),
        verdict,
        shown,
        bars,
      ),
    ),
  );
  return { image, prompt, frame, labels, template, bars, verdict, notice: shown };
}

/** Classify a file of the user's. */
export function useFile(file) {
  const wrong = info.model.can_encode_images ? picture.complaint(file, info.limits) : "This model cannot read pictures.";
  if (wrong) parts.notice.replaceChildren(notice({ icon: "image", title: "That cannot be classified", text: wrong }));
  else update({ upload: picture.keep(file), item: "" });
}

/** Classify an item of the collection. */
export const useItem = (key) => update({ item: key, upload: 0 });

/** As search.js. */
export function render(state) {
  const kept = picture.upload(state.upload);
  if (labelsOf(parts.labels.value).join("\n") !== state.labels.join("\n")) parts.labels.value = state.labels.join("\n");
  if (document.activeElement !== parts.template) parts.template.value = state.template;
  renderFrame(state, kept);
  if (parts.labels.disabled) return;
  const few = state.labels.length < 2;
  const many = state.labels.length > info.limits.max_labels;
  const signature = JSON.stringify([state.labels, state.template, state.item, state.upload]);
  if (signature === asked) return;
  asked = signature;
  waiting.stop({ forget: true });
  running?.abort();
  parts.notice.replaceChildren();
  if ((kept || state.item) && !few && !many) {
    run(state, kept?.file);
    return;
  }
  renderBars([]);
  parts.verdict.textContent = many ? `At most ${info.limits.max_labels} labels.` : kept || state.item ? "Two labels or more, and the bars appear." : "";
}

function renderFrame(state, kept) {
  const { image, prompt, frame } = parts;
  image.hidden = !kept && !state.item;
  prompt.hidden = !image.hidden;
  frame.classList.toggle("full", !image.hidden);
  frame.setAttribute("aria-label", image.hidden ? "Choose a picture" : "Choose another picture");
  if (kept) {
    show(image, kept.url, { lazy: false });
    image.alt = `your picture ${kept.file.name}`;
  } else if (state.item) {
    show(image, thumbnailOf(state.item), { lazy: false });
    image.alt = `picture ${state.item}`;
  }
}

async function run(state, file) {
  running?.abort();
  const mine = (running = new AbortController());
  const again = () => run(state, file);
  const values = { labels: state.labels, templates: state.template, ...(!file && { image_key: state.item }) };
  parts.bars.setAttribute("aria-busy", "true");
  try {
    const answer = await classify(values, file, { signal: mine.signal });
    waiting.stop({ forget: true });
    parts.notice.replaceChildren();
    renderBars(answer.scores);
    parts.verdict.textContent = `Most likely: ${answer.best} (${percent(answer.scores[0].probability)})`;
  } catch (error) {
    if (error.name === "AbortError") return;
    parts.verdict.textContent = "";
    if (error.kind === "busy" && waiting.start(error, again)) return;
    renderBars([]);
    if (error.kind === "key") askForKey(again);
    parts.notice.replaceChildren(failureNotice(error, info.limits, again));
  } finally {
    if (mine === running) parts.bars.removeAttribute("aria-busy");
  }
}

function percent(part) {
  if (part >= 0.9995) return "100 %";
  return part < 0.0005 ? "0 %" : `${(100 * part).toFixed(1)} %`;
}

/** Bars best first; those that were there slide to their new places. */
function renderBars(scores) {
  const before = new Map([...parts.bars.children].map((bar) => [bar.dataset.label, { bar, top: bar.offsetTop }]));
  const bars = scores.slice(0, SHOWN).map((score, place) => {
    const bar = before.get(score.label)?.bar ?? newBar(score.label);
    bar.classList.toggle("best", place === 0);
    bar.querySelector(".part").textContent = percent(score.probability);
    bar.title = `cosine ${score.cosine.toFixed(4)}`;
    bar.style.setProperty("--part", `${(100 * score.probability).toFixed(2)}%`);
    return bar;
  });
  const rest = scores.length - bars.length;
  parts.bars.replaceChildren(...bars, rest > 0 ? h("li", { class: "soft", text: `and ${rest} more` }) : "");
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const bar of bars) {
    const old = before.get(bar.dataset.label);
    const from = old ? old.top - bar.offsetTop : 0;
    if (from) bar.animate([{ transform: `translateY(${from}px)` }, { transform: "none" }], { duration: 260, easing: "ease-out" });
  }
}

function newBar(label) {
  return h("li", { data: { label } }, h("span", { class: "name", text: label }), h("span", { class: "part" }), h("span", { class: "track", "aria-hidden": "true" }, h("i")));
}

