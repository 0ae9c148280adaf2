"use strict";
// Elements and texts. Everything that comes from the router gets into the page as text: through `textContent`, through
// `title`, or as the address of a link whose scheme was checked. Nothing is parsed as HTML; the policy of the page forbids it.

/** The element with an id of page.html. */
function byId(id) {
  return document.getElementById(id);
}

/** A new element. `attributes`: a class as text, or an object of attributes. */
function make(name, attributes, ...children) {
  const node = document.createElement(name);
  if (typeof attributes === "string") {
    node.className = attributes;
  } else {
    for (const [attribute, value] of Object.entries(attributes || {})) {
      if (value !== undefined) node.setAttribute(attribute, value);
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Changes the text of an element only if it differs, so that selections and screen readers are not disturbed. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * A part of a content: a text, or an object with `text` and, if wanted, `chip` (a tone: good, warn, bad, idle, info), `class`,
 * `title`, `press` (the name of an action: the part is a button) or `link` (an address).
 */
function part(content) {
  if (typeof content === "string") return document.createTextNode(content);
  let node;
  if (content.press) {
    node = make("button", { type: "button", "data-press": content.press });
  } else if (content.link && /^https?:$/.test(protocolOf(content.link))) {
    node = make("a", { href: content.link, rel: "noreferrer" });
  } else {
    node = make("span");
  }
  if (content.chip) node.classList.add("chip", content.chip);
  if (content.class) node.classList.add(...content.class.split(" "));
  if (content.title) node.title = content.title;
  node.textContent = content.text;
  return node;
}

function protocolOf(address) {
  try {
    return new URL(address).protocol;
  } catch {
    return "";
  }
}

const filled = new WeakMap();

/** Fills an element with parts, unless it has the same content already. Keeps the focus in an element that stays. */
function fill(node, content) {
  const parts = Array.isArray(content) ? content : [content];
  const signature = JSON.stringify(parts);
  if (filled.get(node) === signature) return;
  const hadFocus = node.contains(document.activeElement);
  filled.set(node, signature);
  node.replaceChildren(...parts.filter((one) => one !== null && one !== "").map(part));
  if (hadFocus) node.querySelector("button, a")?.focus();
}

/** The text of a content, for filters. */
function plain(content) {
  const parts = Array.isArray(content) ? content : [content];
  return parts.map((one) => (one === null ? "" : typeof one === "string" ? one : one.text)).join(" ");
}

/** A list of names and contents. */
function facts(node, pairs) {
  let list = node.querySelector(":scope > dl");
  if (!list) {
    list = make("dl", "facts");
    node.append(list);
  }
  const names = pairs.map(([name]) => name).join("\n");
  if (list.dataset.names !== names) {
    list.dataset.names = names;
    list.replaceChildren(...pairs.flatMap(([name]) => [make("dt", null, name), make("dd")]));
  }
  const values = list.querySelectorAll(":scope > dd");
  pairs.forEach(([, content], at) => fill(values[at], content));
}

const NONE = { text: "–", class: "muted" };

/** A length of time in its largest unit. */
function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

function number(value) {
  return value === null || value === undefined ? "–" : Number(value).toLocaleString("en");
}

function bytes(value) {
  if (value < 1024) return `${value} B`;
  if (value < 1 << 20) return `${(value / 1024).toFixed(1)} KiB`;
  return `${(value / (1 << 20)).toFixed(1)} MiB`;
}

function percent(share) {
  return `${Math.round(share * 100)} %`;
}

/** The local time of day of a moment, and the whole moment as its title. */
function clockTime(moment) {
  const at = moment instanceof Date ? moment : new Date(moment);
  if (Number.isNaN(at.getTime())) return { text: String(moment) };
  return { text: at.toLocaleTimeString("en-GB"), title: at.toISOString() };
}

/** An age in whole seconds at least. */
function age(seconds) {
  return seconds < 10 ? `${Math.max(0, Math.round(seconds))} s` : span(seconds);
}

/** How long ago a moment of the router's clock was, as far as the clocks agree. */
function ago(moment) {
  const seconds = (Date.now() - new Date(moment).getTime()) / 1000;
  return Number.isNaN(seconds) ? "" : `${age(seconds)} ago`;
}

/** Any value as text on one line. */
function shown(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
