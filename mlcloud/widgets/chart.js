// Dollars per hour over time, stacked by session; drawn anew only when the figures are new.

const HEIGHT = 150;
const PAD = { left: 72, right: 10, top: 8, bottom: 20 };
const COLOURS = 6;

// The sessions that cost most have a colour of their own; the rest is one band.
function bands(spend) {
  const all = spend.of
    .map(each => ({ name: each.session, usd: each.usd.map(Number) }))
    .map(each => ({ ...each, total: each.usd.reduce((sum, one) => sum + one, 0) }))
    .filter(each => each.total > 0);
  const sessions = all.filter(each => each.name !== null).sort((a, b) => b.total - a.total);
  const shown = sessions.slice(0, COLOURS).map((each, i) => ({ ...each, colour: `var(--c${i})` }));
  const rest = sessions.slice(COLOURS);
  if (rest.length) shown.push(merged(`${counted(rest.length, "other session")}`, rest, "var(--rest)"));
  const none = all.find(each => each.name === null);
  if (none) shown.push({ ...none, name: "no session", colour: "var(--none)" });
  return shown;
}

function merged(name, parts, colour) {
  const usd = parts[0].usd.map((_, i) => parts.reduce((sum, each) => sum + each.usd[i], 0));
  return { name, usd, colour, total: usd.reduce((sum, one) => sum + one, 0) };
}

function spendChart(spend, range, width) {
  const shown = bands(spend);
  const begin = new Date(spend.begins_at).getTime();
  const count = spend.of.length ? spend.of[0].usd.length : 0;
  const all = shown.reduce((sum, each) => sum + each.total, 0);
  const long = { hour: "the last hour", day: "the last day", week: "the last week" }[range];
  const title = `Dollars per hour by session in ${long}`;
  if (!count || !shown.length) {
    return h("p", { class: "quiet" }, `nothing was spent in ${long}`);
  }
  // The last step goes on: it is measured by as much of it as has passed.
  const elapsed = Math.max(1, Math.min(spend.step_s, (Date.now() - begin) / 1000 - (count - 1) * spend.step_s));
  const hours = i => (i === count - 1 ? elapsed : spend.step_s) / 3600;
  const sums = Array.from({ length: count }, (_, i) => shown.reduce((sum, each) => sum + each.usd[i] / hours(i), 0));
  const most = Math.max(...sums);
  const ticks = nice(most);
  const high = ticks[ticks.length - 1];
  const x = i => PAD.left + (i / count) * (width - PAD.left - PAD.right);
  const y = value => PAD.top + (1 - value / high) * (HEIGHT - PAD.top - PAD.bottom);
  const parts = shown.map(each => `${each.name} ${usd(each.total)}`).join(", ");
  const [titled, described] = [id("title"), id("text")];
  const drawn = svg("svg", {
    role: "img", width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`,
    "aria-labelledby": titled, "aria-describedby": described,
  },
  svg("title", { id: titled }, title),
  svg("desc", { id: described }, `${usd(all)} in all: ${parts}. At most ${rate(most)}.`));
  for (const value of ticks) {
    drawn.append(
      svg("line", { class: "axis", x1: PAD.left, x2: width - PAD.right, y1: y(value), y2: y(value) }),
      svg("text", { x: PAD.left - 8, y: y(value) + 4, "text-anchor": "end" }, rate(value)),
    );
  }
  const stacked = new Array(count).fill(0);
  for (const each of shown) {
    const low = [...stacked];
    each.usd.forEach((value, i) => (stacked[i] += value / hours(i)));
    drawn.append(svg("path", { d: area(low, stacked, x, y), style: `fill:${each.colour}` },
      svg("title", {}, `${each.name}: ${usd(each.total)}`)));
  }
  const every = Math.max(1, Math.round(count / Math.max(2, Math.floor(width / 140))));
  for (let i = 0; i <= count - every / 2; i += every) {
    const at = new Date(begin + i * spend.step_s * 1000);
    drawn.append(svg("text", { x: x(i), y: HEIGHT - 5, "text-anchor": i ? "middle" : "start" }, timeOf(at, range)));
  }
  drawn.append(svg("text", { x: width - PAD.right, y: HEIGHT - 5, "text-anchor": "end" }, "now"));
  return h("div", {}, drawn, legend(shown));
}

function area(low, high, x, y) {
  const up = high.map((value, i) => `${x(i).toFixed(1)} ${y(value).toFixed(1)}L${x(i + 1).toFixed(1)} ${y(value).toFixed(1)}`);
  const down = low.map((value, i) => `${x(i + 1).toFixed(1)} ${y(value).toFixed(1)}L${x(i).toFixed(1)} ${y(value).toFixed(1)}`);
  return `M${up.join("L")}L${down.reverse().join("L")}Z`;
}

function legend(shown) {
  return h("ul", { class: "legend" }, ...shown.map(each =>
    h("li", {}, h("span", { class: "swatch", style: `background:${each.colour}`, "aria-hidden": "true" }),
      `${each.name} `, h("b", {}, usd(each.total)))));
}

function nice(most) {
  const rough = (most || 1) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(each => each * power).find(each => each >= rough);
  const count = Math.max(1, Math.ceil(most / step - 1e-9));
  return Array.from({ length: count + 1 }, (_, i) => i * step);
}

function timeOf(date, range) {
  return range === "week"
    ? date.toLocaleDateString([], { weekday: "short", day: "numeric" })
    : date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
}
