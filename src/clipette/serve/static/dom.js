// Elements from plain values. Text becomes text nodes and nothing here parses HTML: a caption cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * An element. `props`: `class`, `text`, `on` (event: handler), `css` (custom properties and widths, through the CSSOM
 * that a strict policy allows), `data`; other names are attributes: true sets one, null, undefined and false leave it out.
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (name === "css") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A picture from the sprite; decoration only, so that its button needs a name of its own. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** Another picture in an icon that is there. */
export function setIcon(svg, name) {
  svg.querySelector("use").setAttribute("href", `icons.svg#${name}`);
}

/** A button that shows only an icon; `name` is its title and what a screen reader says. */
export function iconButton(name, picture, onClick, props = {}) {
  return h(
    "button",
    { type: "button", title: name, ...props, class: `quiet round ${props.class ?? ""}`, on: { click: onClick } },
    icon(picture),
    h("span", { class: "unseen", text: name }),
  );
}

/** A switch with a line that says what it does. */
export function toggle(id, name, about, onChange) {
  const input = h("input", {
    type: "checkbox",
    role: "switch",
    id,
    "aria-describedby": about ? `${id}-about` : null,
    on: { change: () => onChange(input.checked) },
  });
  const words = [h("span", { text: name }), about && h("small", { id: `${id}-about`, text: about })];
  return { input, element: h("label", { class: "switch" }, input, h("span", { class: "track" }), h("span", {}, words)) };
}

/** `1 picture`, `1,000 pictures`. */
export function counted(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** `16 MB`, `640 kB`. */
export function size(bytes) {
  if (bytes >= 2 ** 20) return `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0).replace(".0", "")} MB`;
  return `${Math.max(1, Math.round(bytes / 1024))} kB`;
}

/** Run `work` once, `wait` milliseconds after the last call. */
export function later(work, wait) {
  let timer = 0;
  const run = (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), wait);
  };
  run.cancel = () => clearTimeout(timer);
  return run;
}
