// A picture of the user's: chosen, pasted or dropped anywhere on the page.

import { byId, size } from "./dom.js";

const ITEM = "application/x-clipette-key";
const KEPT = 12;

const uploads = new Map();
let newest = 0;

/** Keep a picture for this visit, so that Back finds it again; its number goes into the history. */
export function keep(file) {
  newest += 1;
  uploads.set(newest, { file, url: URL.createObjectURL(file) });
  for (const [number, { url }] of uploads) {
    if (number > newest - KEPT) break;
    URL.revokeObjectURL(url);
    uploads.delete(number);
  }
  return newest;
}

/** `{file, url}` of a number, or undefined where the page was loaded anew since. */
export const upload = (number) => uploads.get(number);

/** Why `file` cannot be used, in words, or null. The server decides again. */
export function complaint(file, limits) {
  if (!file.type.startsWith("image/")) return `${file.name || "That"} is not a picture.`;
  if (file.size > limits.max_image_bytes) {
    return `${file.name || "That picture"} has ${size(file.size)}; this server takes up to ${size(limits.max_image_bytes)}. Make it smaller, and try again.`;
  }
  return null;
}

/** Let a result be dragged onto the page as a query. */
export function draggable(element, key) {
  element.draggable = true;
  element.addEventListener("dragstart", (event) => {
    event.dataTransfer.setData(ITEM, key);
    event.dataTransfer.effectAllowed = "copy";
  });
}

/** Listen everywhere: `onFile(file)` and `onItem(key)`. */
export function listen({ onFile, onItem }) {
  const veil = byId("veil");
  let depth = 0;
  const wanted = (event) => event.dataTransfer && [...event.dataTransfer.types].some((type) => type === "Files" || type === ITEM);
  addEventListener("dragenter", (event) => {
    if (!wanted(event)) return;
    event.preventDefault();
    depth += 1;
    veil.hidden = false;
  });
  addEventListener("dragover", (event) => {
    if (!wanted(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  addEventListener("dragleave", (event) => {
    if (!wanted(event)) return;
    depth = Math.max(0, depth - 1);
    veil.hidden = depth === 0;
  });
  const end = () => {
    depth = 0;
    veil.hidden = true;
  };
  addEventListener("dragend", end);
  addEventListener("drop", (event) => {
    if (!wanted(event)) return;
    event.preventDefault();
    end();
    const key = event.dataTransfer.getData(ITEM);
    const [file] = event.dataTransfer.files;
    if (key) onItem(key);
    else if (file) onFile(file);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    onFile(file);
  });
  const chooser = byId("file");
  chooser.addEventListener("change", () => {
    const [file] = chooser.files;
    chooser.value = "";
    if (file) onFile(file);
  });
}

/** Open the system's file chooser. */
export const choose = () => byId("file").click();
