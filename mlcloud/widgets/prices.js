// The price explorer's page side: all rows are here, so filters and order ask nobody.

const [USD, MACHINE, GPU, GPUS, CPUS, MEMORY, MARKET, CLOUD, REGION, AS_OF, MARKS] = Array(11).keys();
const COLUMNS = [
  ["$/h", USD, true], ["machine", MACHINE], ["GPU", GPU], ["vCPUs", CPUS, true], ["memory", MEMORY, true],
  ["market", MARKET], ["cloud", CLOUD], ["region", REGION], ["as of", AS_OF],
];
const FACETS = [["gpu", "GPU", GPU], ["cloud", "Cloud", CLOUD], ["region", "Region", REGION], ["market", "Market", MARKET]];
const PAGE = 25;
const LINES = 20;
const ROW = 22;

function render({ model, el }) {
  const view = new Explorer(model);
  el.append(view.root);
  const sized = new ResizeObserver(() => view.draw());
  sized.observe(view.plot);
  view.show();
  return () => sized.disconnect();
}

class Explorer {
  constructor(model) {
    this.model = model;
    this.all = JSON.parse(model.get("rows"));
    this.filters = { ...model.get("filters") };
    this.by = USD;
    this.down = false;
    this.count = PAGE;
    this.build();
  }

  build() {
    this.choices = Object.fromEntries(FACETS.map(([name, words]) => [name,
      h("select", { id: id(name), onchange: event => this.filter(name, event.target.value) })]));
    this.found = h("p", { role: "status" });
    this.each = h("input", { type: "checkbox", onchange: () => this.draw() });
    this.plot = h("div", { class: "plot" });
    this.body = h("tbody");
    this.heads = COLUMNS.map(([words, column, number]) => h("th", { scope: "col", class: number ? "number" : null },
      h("button", { type: "button", class: "sort", onclick: () => this.order(column) }, words)));
    this.more = h("button", { type: "button", onclick: () => { this.count += 100; this.show(); } });
    this.root = h("section", { class: "mlcloud prices", "aria-label": "Prices of the clouds" },
      h("div", { class: "choices" }, ...FACETS.map(([name, words]) => h("span", {},
        h("label", { for: this.choices[name].id }, words), " ", this.choices[name]))),
      this.found,
      h("label", { class: "per" }, this.each, " per GPU, not per machine"),
      this.plot,
      h("div", { class: "scroll", role: "region", "aria-label": "Offers", tabindex: 0 },
        h("table", {}, h("caption", { class: "hidden" }, "Offers"), h("thead", {}, h("tr", {}, ...this.heads)), this.body)),
      this.more,
      h("p", { class: "quiet" }, this.model.get("age")),
      h("p", { class: "quiet" }, "~ estimated: no source states this price. One line a machine, region and market: its cheapest zone."));
  }

  filter(name, value) {
    if (value) this.filters[name] = value;
    else delete this.filters[name];
    this.count = PAGE;
    this.model.set("filters", { ...this.filters });
    this.model.save_changes();
    this.show();
  }

  order(column) {
    this.down = this.by === column ? !this.down : false;
    this.by = column;
    this.show();
  }

  fitting(but = null) {
    const wanted = FACETS.filter(([name]) => name !== but && this.filters[name]).map(([name, , column]) => [column, this.filters[name]]);
    return this.all.filter(row => wanted.every(([column, value]) => row[column] === value));
  }

  show() {
    for (const [name, , column] of FACETS) {
      // Only what the other filters leave can be chosen.
      const left = [...new Set(this.fitting(name).map(row => row[column]))].sort(natural);
      const options = [["", "all"], ...left.map(each => [each, each])];
      const select = this.choices[name];
      keyed(select, options, each => each[0], ([value, words]) => h("option", { value }, words), () => {});
      select.value = this.filters[name] ?? "";
    }
    this.rows = this.fitting();
    const { by, down } = this;
    this.rows.sort((a, b) => (down ? -1 : 1) * natural(a[by], b[by]) || Number(a[USD]) - Number(b[USD]));
    COLUMNS.forEach(([words, column], i) => {
      const order = column === by ? (down ? "descending" : "ascending") : null;
      mark(this.heads[i], "aria-sort", order);
      say(this.heads[i].firstChild, words + (order ? (down ? " ▼" : " ▲") : ""));
    });
    say(this.found, `${counted(this.rows.length, "offer")}, ${this.range()}`);
    this.body.replaceChildren(...this.rows.slice(0, this.count).map(tr));
    const rest = this.rows.length - this.count;
    this.more.hidden = rest <= 0;
    say(this.more, rest > 100 ? `Show 100 more of ${counted(rest, "offer")}` : `Show ${counted(rest, "more offer")}`);
    this.draw();
  }

  range() {
    if (!this.rows.length) return "nothing fits: choose less";
    const prices = this.rows.map(row => Number(row[USD]));
    return `${rate(Math.min(...prices))} to ${rate(Math.max(...prices))}`;
  }

  draw() {
    const width = Math.floor(this.plot.clientWidth);
    if (!width || !this.rows) return;
    const each = this.each.checked;
    const rows = each ? this.rows.filter(row => row[GPUS]) : this.rows;
    this.plot.replaceChildren(plot(rows, each, width));
  }
}

function natural(a, b) {
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? String(a).localeCompare(String(b), "en", { numeric: true }) : x - y;
}

function money(row) {
  return (row[MARKS] & 1 ? "~" : "") + "$" + Number(row[USD]).toLocaleString("en-US", fixed(4)) + (row[MARKS] & 2 ? " (simulated)" : "");
}

function tr(row) {
  const gpu = row[GPU] === "none" ? "–" : `${row[GPUS]} ${row[GPU]}`;
  const texts = [money(row), row[MACHINE], gpu, row[CPUS], `${row[MEMORY].toLocaleString("en-US")} GiB`,
    row[MARKET], row[CLOUD], row[REGION], row[AS_OF]];
  return h("tr", {}, ...texts.map((text, i) => h(i === 1 ? "th" : "td", {
    scope: i === 1 ? "row" : null, class: COLUMNS[i][2] ? "number" : null,
  }, String(text))));
}

// A line for each GPU; spot and on-demand differ by shape too.
function plot(rows, per, width) {
  if (!rows.length) return h("p", { class: "quiet" }, "nothing to plot");
  const price = row => Number(row[USD]) / (per ? row[GPUS] : 1);
  const groups = new Map();
  for (const row of rows) groups.set(row[GPU], [...(groups.get(row[GPU]) ?? []), row]);
  const lowest = found => found.reduce((least, row) => Math.min(least, price(row)), Infinity);
  const sorted = [...groups].map(([name, found]) => [name, found, lowest(found)]).sort((a, b) => a[2] - b[2]);
  const shown = sorted.slice(0, LINES);
  const all = shown.flatMap(([, found]) => found.map(price));
  const low = 10 ** Math.floor(Math.log10(all.reduce((a, b) => Math.min(a, b))));
  const high = 10 ** Math.ceil(Math.log10(all.reduce((a, b) => Math.max(a, b)) * 1.0001));
  const left = 120, right = 16, top = 6, height = shown.length * ROW + 30;
  const x = value => left + (Math.log10(value / low) / Math.log10(high / low)) * (width - left - right);
  const [titled, described] = [id("title"), id("text")];
  const unit = per ? "GPU-hour" : "hour";
  const drawn = svg("svg", {
    role: "img", width, height, viewBox: `0 0 ${width} ${height}`, "aria-labelledby": titled, "aria-describedby": described,
  },
  svg("title", { id: titled }, `Dollars per ${unit} by GPU and market, logarithmic`),
  svg("desc", { id: described }, shown.map(([name, , least]) => `${name === "none" ? "no GPU" : name} from ${rate(least)}`).join(", ")));
  for (let value = low; value <= high * 1.001; value *= 10) {
    drawn.append(svg("line", { class: "axis", x1: x(value), x2: x(value), y1: top, y2: height - 22 }),
      svg("text", { x: x(value), y: height - 8, "text-anchor": value >= high * 0.999 ? "end" : "middle" }, "$" + value.toLocaleString("en-US", { maximumSignificantDigits: 1 })));
  }
  shown.forEach(([name, found], i) => {
    const y = top + i * ROW + ROW / 2;
    drawn.append(svg("text", { class: "name", x: left - 12, y: y + 4, "text-anchor": "end" }, name === "none" ? "no GPU" : name));
    for (const [market, at] of [["on-demand", -4], ["spot", 4]]) {
      const places = new Set();
      let path = "";
      for (const row of found) {
        const here = x(price(row)).toFixed(0);
        if (row[MARKET] !== market || places.has(here)) continue;
        places.add(here);
        path += market === "spot" ? `M${here - 3} ${y + at}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0` : `M${here - 3} ${y + at - 3}h6v6h-6Z`;
      }
      if (path) drawn.append(svg("path", { d: path, class: market }, svg("title", {}, `${name} ${market}: ${counted(places.size, "price")}`)));
    }
  });
  const rest = sorted.length - shown.length;
  const key = (market, shape) => h("li", {}, svgMark(market, shape), market);
  return h("div", {}, drawn, h("ul", { class: "legend" }, h("li", { class: "quiet" }, `$ per ${unit}, logarithmic:`),
    key("on-demand", "M1 1h8v8h-8Z"), key("spot", "M1 5a4 4 0 1 0 8 0a4 4 0 1 0 -8 0"),
    rest > 0 ? h("li", { class: "quiet" }, `and ${counted(rest, "dearer GPU")} not drawn: filter to see them`) : null));
}

function svgMark(market, shape) {
  // In the legend: its word stands beside it.
  const made = svg("svg", { width: 10, height: 10, "aria-hidden": "true" }, svg("path", { d: shape, class: market }));
  return made;
}

export default { render };
