"""What a screen reader would miss, and text too faint to read: checked in the page itself."""

from __future__ import annotations

from playwright.sync_api import Locator


def unnamed(widget: Locator) -> list[str]:
    """What is wrong, one line each: controls, pictures and meters without a name, tables without
    header cells, colour contrasts below 4.5 (WCAG 2.2 AA, 1.4.3; disabled controls are exempt)."""
    found: list[str] = widget.evaluate(CHECK)
    return found


CHECK = """root => {
  const wrong = [];
  const start = each => each.outerHTML.slice(0, 120);
  const of = ids => ids.split(" ").map(one => document.getElementById(one)?.textContent).join("");
  const named = each => each.getAttribute("aria-label")
    || each.labels?.length && each.labels[0].textContent.trim()
    || of(each.getAttribute("aria-labelledby") || "")
    || each.textContent.trim();
  const operable = "button, select, input, progress, [role=img], [role=meter], [role=group], "
    + "[role=region]";
  for (const each of root.querySelectorAll(operable)) {
    if (!named(each)) wrong.push(`no name: ${start(each)}`);
  }
  for (const each of root.querySelectorAll("svg:not([aria-hidden=true])")) {
    const described = each.querySelector("title") || each.getAttribute("aria-label");
    if (each.getAttribute("role") !== "img" || !described) wrong.push(`no words: ${start(each)}`);
  }
  for (const each of root.querySelectorAll("table")) {
    const heads = [...each.querySelectorAll("thead th")];
    if (!each.querySelector("caption") || heads.some(th => th.scope !== "col")) {
      wrong.push("a table without caption or header cells");
    }
  }
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = text => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const over = (top, below) => below.map(
    (each, i) => i === 3 ? 255 : top[i] * top[3] / 255 + each * (1 - top[3] / 255));
  const ground = each => {
    const layers = [];
    for (let at = each; at; at = at.parentElement) {
      layers.push(rgba(getComputedStyle(at).backgroundColor));
      if (layers.at(-1)[3] === 255) break;
    }
    return layers.reduceRight((below, top) => over(top, below), [255, 255, 255, 255]);
  };
  const unread = "title, desc, style, option, :disabled, [aria-disabled=true]";
  const seen = new Set();
  for (const each of root.querySelectorAll("*")) {
    const own = [...each.childNodes].some(one => one.nodeType === 3 && one.textContent.trim());
    if (!own || !each.getClientRects().length || each.matches(unread)) continue;
    const style = getComputedStyle(each);
    const colour = each instanceof SVGElement ? style.fill : style.color;
    const below = ground(each);
    const [a, b] = [light(over(rgba(colour), below)), light(below)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    const key = `${colour} on ${below}`;
    if (contrast < 4.5 && !seen.has(key)) {
      seen.add(key);
      wrong.push(`${contrast.toFixed(2)}: ${key}: ${each.textContent.trim().slice(0, 30)}`);
    }
  }
  return wrong;
}"""
