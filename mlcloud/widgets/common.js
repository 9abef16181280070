// What the widgets share: elements, money and time in words, rows that keep their place and focus.

const SVG = "http://www.w3.org/2000/svg";

function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  return fill(made, attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter(each => each !== null && each !== undefined));
  return made;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function mark(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

// One element for each item, kept as long as its key is there: focus stays where it is.
function keyed(parent, items, key, make, update) {
  const known = (parent._keyed ??= new Map());
  const wanted = new Set();
  let before = null;
  for (const item of items) {
    const name = key(item);
    wanted.add(name);
    let row = known.get(name);
    if (row === undefined) known.set(name, (row = make(item)));
    update(row, item);
    const next = before === null ? parent.firstChild : before.nextSibling;
    if (row !== next) {
      const active = row.contains(document.activeElement) ? document.activeElement : null;
      parent.insertBefore(row, next);
      active?.focus({ preventScroll: true });
    }
    before = row;
  }
  for (const [name, row] of known) {
    if (!wanted.has(name)) {
      row.remove();
      known.delete(name);
    }
  }
}

function usd(value) {
  const amount = Number(value);
  if (amount === 0) return "$0.00";
  if (amount < 0.00005) return "<$0.0001";
  const decimals = amount >= 0.0995 ? 2 : amount >= 0.00995 ? 3 : 4;
  return "$" + amount.toLocaleString("en-US", fixed(decimals));
}

function rate(value, unit = "/h") {
  return "$" + Number(value).toLocaleString("en-US", { ...fixed(2), maximumFractionDigits: 4 }) + unit;
}

function fixed(decimals) {
  return { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
}

function lasting(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = value => String(value).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.floor(whole / 86400)} d ${two(Math.floor((whole % 86400) / 3600))} h`;
}

function clock(date) {
  return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

function counted(count, one, more = one + "s") {
  return `${count.toLocaleString("en-US")} ${count === 1 ? one : more}`;
}

let ids = 0;
function id(prefix) {
  return `mlcloud-${prefix}-${Date.now().toString(36)}-${++ids}`;
}
