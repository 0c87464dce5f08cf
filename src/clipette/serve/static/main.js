// The page begins here: tabs, colours, keys, and the first question to the server.

import * as about from "./about.js";
import { getInfo, useKey } from "./api.js";
import * as classify from "./classify.js";
import { byId, h, setIcon } from "./dom.js";
import { failureNotice } from "./notice.js";
import * as picture from "./picture.js";
import * as search from "./search.js";
import { fresh, now, onChange, update } from "./state.js";

const VIEWS = { search, classify };
const THEMES = { auto: "as the system", light: "light", dark: "dark" };

let ready = false;

// ---------------------------------------------------------------- tabs

function render(state) {
  for (const tab of ["search", "classify", "about"]) {
    byId(`view-${tab}`).hidden = tab !== state.tab;
    const link = document.querySelector(`.tabs [data-tab="${tab}"]`);
    if (tab === state.tab) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const words = { search: state.q, classify: "Classify", about: "About" }[state.tab];
  document.title = words ? `${words} · Clipette` : "Clipette";
  // Before the server has answered, so that a shared search does not begin with the empty page.
  if (!ready) byId("view-search").dataset.asked = String(Boolean(state.q || state.key || state.liked.length));
  if (ready) VIEWS[state.tab]?.render(state);
}

for (const link of document.querySelectorAll("[data-tab]")) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const again = link.classList.contains("brand");
    update(again ? fresh() : { tab: link.dataset.tab });
    if (again) byId("words").focus();
  });
}

// ---------------------------------------------------------------- colours

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  setIcon(byId("theme").querySelector("svg"), theme);
  const name = `Colours: ${THEMES[theme]}`;
  byId("theme").title = name;
  byId("theme-name").textContent = name;
}

setTheme(document.documentElement.dataset.theme ?? "auto");
byId("theme").addEventListener("click", () => {
  const order = Object.keys(THEMES);
  const theme = order[(order.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % order.length];
  setTheme(theme);
  try {
    localStorage.setItem("clipette-theme", theme);
  } catch {
    // Storage is blocked: the choice holds for this visit.
  }
});

// ---------------------------------------------------------------- keys and pictures

addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest?.("input:not([type=checkbox], [type=radio], [type=range]), textarea, select, dialog")) return;
  event.preventDefault();
  if (now().tab !== "search") update({ tab: "search" });
  byId("words").focus();
  byId("words").select();
});

function listenToPictures() {
  // On the About page a picture means a search.
  const target = () => {
    if (now().tab === "about") update({ tab: "search" });
    return VIEWS[now().tab];
  };
  const closed = (work) => (what) => {
    byId("detail").close();
    work(what);
  };
  picture.listen({ onFile: closed((file) => target().useFile(file)), onItem: closed((key) => target().useItem(key)) });
}

// ---------------------------------------------------------------- the server

let given = false;

function askForKey(again) {
  const dialog = byId("key-dialog");
  if (dialog.open) return;
  const input = h("input", { id: "key", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
  const form = h(
    "form",
    {},
    h("h2", { text: given ? "That key is not known here" : "This server asks for a key" }),
    h("label", { for: "key", class: "soft", text: "It is kept until you close this tab, and sent to this server only." }),
    input,
    h("div", { class: "acts" }, h("button", { type: "submit", class: "primary", text: "Use it" })),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close();
    given = true;
    useKey(input.value.trim());
    again();
  });
  dialog.replaceChildren(form);
  dialog.showModal();
}

async function begin() {
  try {
    const info = await getInfo();
    byId("trouble").replaceChildren();
    search.start(info, askForKey);
    classify.start(info, askForKey);
    about.start(info);
    listenToPictures();
    ready = true;
    document.documentElement.dataset.ready = "";
    render(now());
    if (now().tab === "search" && !now().q && matchMedia("(pointer: fine)").matches) byId("words").focus();
  } catch (error) {
    if (error.kind === undefined) throw error;
    if (error.kind === "key") askForKey(begin);
    byId("trouble").replaceChildren(failureNotice(error, null, begin));
  }
}

onChange(render);
render(now());
begin();
