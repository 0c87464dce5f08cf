// What happened, in words, with what can be done about it.

import { explain } from "./api.js";
import { h, icon } from "./dom.js";

/** A notice as an element. `actions`: `[name, work]` each, the first the likely one. */
export function notice({ icon: picture, title, text, actions = [] }) {
  return h(
    "div",
    { class: "notice" },
    icon(picture),
    h("h2", { text: title }),
    text && h("p", { class: "soft", text }),
    actions.length > 0 &&
      h("div", { class: "acts" }, actions.map(([name, work], place) => h("button", { type: "button", class: place ? "" : "primary", text: name, on: { click: work } }))),
  );
}

/** A failure as a notice with "Try again" where that may help. */
export function failureNotice(failure, limits, retry) {
  const said = explain(failure, limits);
  return notice({ ...said, actions: said.retry && retry ? [["Try again", retry]] : [] });
}

const PATIENCE = 3; // times that a busy server is asked again before the user is

/** Asks a busy server again after the time it names, counting down in words. */
export class Waiting {
  constructor(place) {
    this.place = place;
    this.timer = 0;
    this.tries = 0;
  }

  /** A request went through, or another one is made. */
  stop({ forget = false } = {}) {
    clearInterval(this.timer);
    if (forget) this.tries = 0;
  }

  /** True where `again` will be called by itself; false once patience is over. */
  start(failure, again) {
    this.stop();
    if (this.tries >= PATIENCE) return false;
    this.tries += 1;
    let left = Math.min(30, Math.max(1, Math.ceil(failure.wait || 2)));
    const text = h("p", { class: "soft" });
    const go = () => {
      this.stop();
      again();
    };
    const tell = () => (text.textContent = `It has more requests than it can answer at once. Trying again in ${left} s.`);
    tell();
    const shown = notice({ icon: "wait", title: "The server is busy", actions: [["Try now", go]] });
    shown.querySelector("h2").after(text);
    this.place.replaceChildren(shown);
    this.timer = setInterval(() => {
      left -= 1;
      if (left <= 0) go();
      else tell();
    }, 1000);
    return true;
  }
}
