// A few pictures of the collection for the empty page: something to look at, and to begin from.

import { search, show } from "./api.js";
import { h } from "./dom.js";
import { nameOf } from "./results.js";

const COUNT = 12;

/** A row of pictures, or null where there are none to show. `onPick(key)`: one was chosen; `onHits(hits)`: what came. */
export async function samples(info, onPick, onHits) {
  if (!info.model.can_encode_text || !info.features.thumbnails || !info.index.items) return null;
  let hits = [];
  try {
    // The words say nothing about any picture, and diversity does the choosing.
    const request = { text: "a photo", k: Math.min(COUNT, info.limits.max_k), kind: "image", mmr: 0.3 };
    await search(request, null, { onPart: (part) => (hits = part.hits) });
  } catch {
    return null; // decoration only
  }
  onHits(hits);
  const pick = (hit) => {
    const image = h("img", { alt: nameOf(hit), width: 160, height: 160, decoding: "async", on: { load: () => image.classList.add("ready") } });
    show(image, hit.thumbnail);
    return h("button", { type: "button", class: "shot", title: "More like this", on: { click: () => onPick(hit.key) } }, image);
  };
  if (!hits.length) return null;
  return h("div", { class: "samples", role: "group", "aria-label": "Pictures of this collection to begin from" }, hits.map(pick));
}
