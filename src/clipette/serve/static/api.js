// The public API, and its failures in words.

const BASE = new URL("v1/", document.baseURI);
const KEY = "clipette-key";

let bearer = "";
try {
  bearer = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Storage is blocked: a key is asked for on each visit.
}

/** Use `key` from now on, for this browser tab only. */
export function useKey(key) {
  bearer = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // As above.
  }
}

/** A failure. `kind`: busy, large, key, picture, input, offline, slow or server; `wait`: seconds the server asks for. */
export class Failure extends Error {
  constructor(kind, message, { status = 0, wait = 0, param = null } = {}) {
    super(message);
    Object.assign(this, { kind, status, wait, param });
  }
}

const KINDS = { 401: "key", 403: "key", 408: "slow", 413: "large", 429: "busy", 503: "busy", 504: "slow" };

async function failureOf(response) {
  let message = "";
  let param = null;
  let type = "";
  try {
    const { error } = await response.json();
    ({ message = "", param = null, type = "" } = error);
  } catch {
    // A proxy's own page: the status has to do.
  }
  const kind = type === "bad_image" ? "picture" : KINDS[response.status] ?? (response.status < 500 ? "input" : "server");
  const wait = Number.parseFloat(response.headers.get("retry-after") ?? "") || 0;
  return new Failure(kind, message, { status: response.status, wait, param });
}

/** One request; answers a `Response` that is ok, or throws a `Failure` (an `AbortError` where `signal` aborted it). */
async function send(path, { body, form, signal } = {}) {
  const headers = {};
  if (bearer) headers.authorization = `Bearer ${bearer}`;
  if (body) headers["content-type"] = "application/json";
  const method = body || form ? "POST" : "GET";
  let response;
  try {
    response = await fetch(new URL(path, BASE), { method, headers, signal, body: form ?? (body && JSON.stringify(body)) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("offline", "");
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

/** `values` as the server's multipart form: lists and objects as JSON, the picture as the file `image`. */
function formOf(values, picture) {
  const form = new FormData();
  for (const [name, value] of Object.entries(values)) {
    if (value === null || value === undefined) continue;
    form.set(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  form.set("image", picture, picture.name || "picture");
  return form;
}

const bodyOf = (values, picture) => (picture ? { form: formOf(values, picture) } : { body: values });

/** What is served: model, index, limits, features. */
export async function getInfo() {
  return (await send("info")).json();
}

/** Search; `onPart` gets each answer as it arrives: the first hits at once, refined ones after. */
export async function search(values, picture, { signal, onPart }) {
  const response = await send("search", { ...bodyOf({ ...values, stream: true }, picture), signal });
  try {
    for await (const part of lines(response)) {
      if (part.error) throw new Failure(part.error.type === "overloaded" ? "busy" : "server", part.error.message);
      onPart(part);
    }
  } catch (error) {
    if (error instanceof TypeError) throw new Failure("offline", ""); // the connection broke half-way
    throw error;
  }
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const parts = (rest + (value ?? "")).split("\n");
    rest = done ? "" : parts.pop();
    for (const part of parts) if (part.trim()) yield JSON.parse(part);
    if (done) return;
  }
}

/** Chances of the labels for one picture: a file, or an item's key in `values.image_key`. */
export async function classify(values, picture, { signal }) {
  return (await send("classify", { ...bodyOf(values, picture), signal })).json();
}

/** Rows by their keys. */
export async function getItem(key) {
  return (await send(`items/${encodeURIComponent(key)}`)).json();
}

/** Log what was done with a hit. It must never disturb: failures are dropped. */
export function click(values) {
  send("clicks", { body: values }).catch(() => {});
}

export const thumbnailOf = (key) => new URL(`items/${encodeURIComponent(key)}/thumbnail`, BASE).pathname;
export const imageOf = (key) => new URL(`items/${encodeURIComponent(key)}/image`, BASE).pathname;

const nearing = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      nearing.unobserve(target);
      fetchInto(target, target.dataset.address);
    }
  },
  { rootMargin: "400px" },
);

/**
 * Show the picture at `address` once `image` comes near the window. Browsers do that alone, but send no bearer key:
 * with a key the bytes are fetched here.
 */
export function show(image, address, { lazy = true } = {}) {
  nearing.unobserve(image);
  image.dataset.address = address;
  // A picture of the user's own (blob:) is here already.
  if (!bearer || address.startsWith("blob:")) {
    image.loading = lazy ? "lazy" : "eager";
    image.src = address;
    return;
  }
  if (lazy) nearing.observe(image);
  else fetchInto(image, address);
}

async function fetchInto(image, address) {
  try {
    const url = URL.createObjectURL(await (await send(address)).blob());
    if (image.dataset.address !== address) {
      URL.revokeObjectURL(url); // another one is wanted by now
      return;
    }
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    image.src = url;
  } catch {
    if (image.dataset.address === address) image.dispatchEvent(new Event("error"));
  }
}

/** Let `anchor` open the picture at `address` in another tab; with a key, as above, from bytes that are fetched here. */
export function link(anchor, address) {
  Object.assign(anchor, { href: address, target: "_blank", rel: "noopener" });
  anchor.addEventListener("click", async (event) => {
    if (!bearer) return;
    event.preventDefault();
    const page = open("", "_blank");
    try {
      const url = URL.createObjectURL(await (await send(address)).blob());
      if (page) page.location = url;
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch {
      page?.close();
    }
  });
  return anchor;
}

/** A failure as `{icon, title, text, retry}` for people. `limits`: of /v1/info. */
export function explain(failure, limits) {
  const said = failure.message ? `${failure.message[0].toUpperCase()}${failure.message.slice(1)}` : "";
  switch (failure.kind) {
    case "busy":
      return { icon: "wait", title: "The server is busy", text: "It has more requests than it can answer at once.", retry: true };
    case "large": {
      const most = limits ? `This server takes pictures up to ${sizeWords(limits)}.` : "";
      return { icon: "image", title: "That picture is too large", text: `${most} Make it smaller, and try again.`.trim(), retry: false };
    }
    case "key":
      return { icon: "alert", title: "This server asks for a key", text: "Its owner can give you one.", retry: true };
    case "offline":
      return { icon: "cable", title: "The server cannot be reached", text: "Is clipette serve still running?", retry: true };
    case "slow":
      return { icon: "wait", title: "That took too long", text: "The server gave up on this request; it may be busy.", retry: true };
    case "picture":
      return { icon: "image", title: "That picture cannot be read", text: "It is damaged, or of a kind that this server does not take. JPEG, PNG and WebP always work.", retry: false };
    case "input":
      return { icon: "alert", title: "That cannot be done", text: said, retry: false };
    default:
      return { icon: "alert", title: "Something broke on the server", text: said || "Its log says what.", retry: true };
  }
}

function sizeWords(limits) {
  const megabytes = limits.max_image_bytes / 2 ** 20;
  const megapixels = limits.max_image_pixels / 1e6;
  return `${megabytes >= 1 ? Math.round(megabytes) : megabytes.toFixed(2)} MB and ${Math.round(megapixels)} megapixels`;
}
