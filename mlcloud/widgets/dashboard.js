// The dashboard's page side. It reads the gateway's JSON as it came, tells Python that it is seen,
// and sends what is pressed; nothing here knows how a session is parked.

const BEAT_MS = 10000;
const TOLD_MS = 10000; // a screen reader is told of new figures at most so often
const STALE_S = 6;
const RANGES = [["hour", "1 hour"], ["day", "1 day"], ["week", "1 week"]];
const MARKS = {
  starting: "◌", idle: "○", busy: "●", waiting: "◌", moving: "→", parked: "‖", closed: "×", failed: "✕",
};

function render({ model, el }) {
  const view = new View(model);
  el.append(view.root);
  const changed = () => view.show();
  model.on("change:at", changed);
  model.on("msg:custom", view.heard);
  const beat = () => {
    if (document.visibilityState === "visible") model.send({ kind: "beat" });
  };
  const beating = setInterval(beat, BEAT_MS);
  const ageing = setInterval(() => view.age(), 2000);
  document.addEventListener("visibilitychange", beat);
  const sized = new ResizeObserver(() => view.draw());
  sized.observe(view.chart);
  view.show();
  beat();
  return () => {
    clearInterval(beating);
    clearInterval(ageing);
    document.removeEventListener("visibilitychange", beat);
    sized.disconnect();
    model.off("change:at", changed);
    model.off("msg:custom", view.heard);
  };
}

class View {
  constructor(model) {
    this.model = model;
    this.told = -Infinity;
    this.pending = new Map(); // session → id of what was asked
    this.asking = new Set(); // sessions whose close waits for a yes
    this.heard = message => this.answered(message);
    this.build();
  }

  build() {
    const titled = id("cluster");
    this.title = h("b", { id: titled });
    this.state = h("span", { class: "quiet" });
    this.simulated = h("span", { class: "badge", hidden: true }, "simulated prices: nobody is charged");
    this.now = h("dd");
    this.today = h("dd");
    this.all = h("dd");
    this.standing = h("p", { class: "quiet" });
    this.budgets = h("div", { class: "budgets" });
    this.note = h("p", { class: "note", role: "status" });
    this.live = h("div", { class: "hidden", "aria-live": "polite", "aria-atomic": "true" });
    this.chart = h("div", { class: "chart" });
    this.ranges = h("div", { class: "ranges", role: "group", "aria-label": "How far back" },
      ...RANGES.map(([name, words]) => h("button", {
        type: "button", "data-range": name, onclick: () => this.model.send({ kind: "range", value: name }),
      }, words)));
    this.nodes = rows("Nodes", ["node", "type", "market", "zone", "$/h", "reserved", "CPU", "memory", "GPU", "used by"],
      ["$/h", "reserved", "CPU", "memory", "GPU"]);
    this.sessions = rows("Sessions", ["session", "state", "actions", "spent", "$/h", "cells safe", "on"], ["spent", "$/h"]);
    this.tried = h("ul");
    this.attempts = h("details", { hidden: true }, h("summary"), this.tried);
    this.asOf = h("p", { class: "quiet asof" });
    this.body = h("div", {},
      h("dl", { class: "figures" },
        h("div", {}, h("dt", {}, "now"), this.now),
        h("div", {}, h("dt", {}, "today (UTC)"), this.today),
        h("div", {}, h("dt", {}, "so far"), this.all)),
      this.budgets, this.standing,
      h("div", { class: "above" }, h("h3", {}, "Spend by session"), this.ranges), this.chart,
      this.sessions.section, this.note, this.nodes.section, this.attempts);
    this.none = h("p", { hidden: true },
      "No cluster is up, and nothing bills. A %%remote cell or %mlcloud up starts one; this looks on.");
    this.root = h("section", { class: "mlcloud dashboard", "aria-labelledby": titled },
      h("div", { class: "head" }, this.title, this.state, this.simulated), this.none, this.body, this.asOf, this.live);
  }

  // --- figures ----------------------------------------------------------------------------------

  show() {
    const text = this.model.get("cluster");
    this.none.hidden = Boolean(text);
    this.body.hidden = !text;
    this.age();
    if (!text) {
      say(this.title, "mlcloud");
      say(this.state, "");
      this.simulated.hidden = true;
      return;
    }
    const info = JSON.parse(text);
    const spend = this.model.get("spend") ? JSON.parse(this.model.get("spend")) : null;
    this.info = info;
    say(this.title, `cluster ${info.name}`);
    say(this.state, `on ${info.cloud} · ${info.state}${info.detail ? `: ${info.detail}` : ""}`);
    this.simulated.hidden = !info.simulated;
    say(this.now, rate(info.usd_per_hour));
    const today = spend ? Math.max(0, Number(info.usd) - Number(spend.usd_before_today)) : null;
    say(this.today, today === null ? "–" : usd(today));
    say(this.all, usd(info.usd));
    say(this.standing, Number(info.standing_usd_per_hour)
      ? `The head bills ${rate(info.standing_usd_per_hour)}, also while every session is parked.`
      : "Nothing bills while every session is parked and its nodes are given back.");
    this.showBudgets(info);
    this.showSessions(info);
    this.showNodes(info);
    this.showAttempts(info);
    if (this.drawn !== this.model.get("spend")) this.draw();
    this.tell(info, today);
  }

  age() {
    const at = this.model.get("at");
    const old = Date.now() / 1000 - at;
    const stale = old > STALE_S;
    say(this.asOf, at === 0 ? "" : stale
      ? `no news since ${clock(new Date(at * 1000))}: the notebook's kernel is busy, or was ended`
      : `live · ${clock(new Date(at * 1000))}`);
    this.root.classList.toggle("stale", stale);
  }

  tell(info, today) {
    const failed = info.sessions.filter(each => each.state === "failed").length;
    const busy = info.sessions.filter(each => each.state === "busy").length;
    const words = `${rate(info.usd_per_hour)} now${today === null ? "" : `, ${usd(today)} today`}; `
      + `${counted(info.nodes.length, "node")}, ${counted(info.sessions.length, "session")}, ${busy} busy`
      + (failed ? `, ${failed} failed` : "");
    if (Date.now() - this.told < TOLD_MS) return;
    if (this.live.textContent !== words) this.told = Date.now();
    say(this.live, words);
  }

  showBudgets(info) {
    const none = info.budgets.length ? [] : [null];
    keyed(this.budgets, [...info.budgets, ...none], each => (each ? whoseBudget(each) : "none"),
      each => (each
        ? h("div", { class: "budget" },
          h("div", { class: "bar", role: "meter", "aria-valuemin": 0 }, h("div", { class: "full" })),
          h("span"))
        : h("p", { class: "quiet" }, "No budget is set: %mlcloud budget 50/day")),
      (row, each) => each && showBudget(row, each));
  }

  draw() {
    const spend = this.model.get("spend");
    this.drawn = spend;
    const range = this.model.get("range");
    for (const button of this.ranges.children) {
      mark(button, "aria-pressed", button.dataset.range === range ? "true" : "false");
    }
    const width = Math.floor(this.chart.clientWidth);
    if (!spend || !width) return;
    this.chart.replaceChildren(spendChart(JSON.parse(spend), range, width));
  }

  // --- rows -------------------------------------------------------------------------------------

  showNodes(info) {
    this.nodes.empty.hidden = info.nodes.length > 0;
    this.nodes.table.hidden = !info.nodes.length;
    say(this.nodes.empty, "No node is up.");
    keyed(this.nodes.body, info.nodes, each => each.id, each => cells(each.id, 9, [3, 4, 5, 6, 7]), (row, each) => {
      const [, type, market, zone, price, reserved, cpu, memory, gpu, used] = row.children;
      say(type, each.instance_type);
      say(market, each.market);
      say(zone, each.zone);
      say(price, rate(each.usd_per_hour, ""));
      say(reserved, `${Math.round(each.reserved * 100)} %`);
      const leaving = each.notice_deadline
        ? ` · taken back in ${lasting((new Date(each.notice_deadline) - Date.now()) / 1000)}` : "";
      const idle = each.idle_since ? (Date.now() - new Date(each.idle_since)) / 1000 : 0;
      const use = each.use;
      const gpus = use?.gpus ?? [];
      const busy = gpus.reduce((sum, one) => sum + one.busy, 0) / (gpus.length || 1);
      const held = gpus.reduce((sum, one) => sum + one.memory, 0);
      const there = gpus.reduce((sum, one) => sum + one.memory_there, 0);
      level(cpu, use && each.cpus ? use.cpus / each.cpus : null, use && `${use.cpus.toFixed(1)} of ${each.cpus} CPUs`);
      level(memory, use && each.memory_bytes ? use.memory / each.memory_bytes : null,
        use && `${gb(use.memory)} of ${gb(each.memory_bytes)} GB`);
      level(gpu, gpus.length ? busy : null, gpus.length ? `${each.gpu}, ${gb(held)} of ${gb(there)} GB of its memory` : null,
        each.gpu ? "not seen" : "none");
      // A node whose sessions all stand still is idle too.
      const on = info.sessions.filter(one => one.node === each.id);
      const still = on.length && !each.jobs?.length && on.every(one => one.state === "idle" && one.idle_since);
      const since = still ? Math.min(...on.map(one => (Date.now() - new Date(one.idle_since)) / 1000)) : 0;
      const names = [...each.sessions, ...(each.jobs ?? [])].join(", ");
      used.className = names && !leaving && !(still && since > 60) ? "" : "warn";
      say(used, (names ? (still && since > 60 ? `⚠ ${names}: idle for ${lasting(since)}` : names)
        : `⚠ idle for ${lasting(idle)}, and bills`) + leaving);
    });
  }

  showSessions(info) {
    this.sessions.empty.hidden = info.sessions.length > 0;
    this.sessions.table.hidden = !info.sessions.length;
    say(this.sessions.empty, "There is no session yet.");
    // What is on a node, or wants one, comes first.
    const order = [...info.sessions].sort((a, b) => (a.state === "parked") - (b.state === "parked"));
    keyed(this.sessions.body, order, each => each.name, each => this.makeSession(each), (row, each) => {
      const [, state, , spent, price, safe, on] = row.children;
      const idle = each.idle_since ? ` for ${lasting((Date.now() - new Date(each.idle_since)) / 1000)}` : "";
      const mark_ = state.firstChild;
      say(mark_, MARKS[each.state] ?? "");
      say(state.lastChild, ` ${each.state}${idle}`);
      state.className = each.state === "failed" ? "bad" : "";
      mark(state, "title", each.detail || null);
      say(on, each.instance_type ? `${each.instance_type} ${each.zone ?? ""}` : "no node");
      const behind = each.finished_cells - each.safe_cells;
      safe.className = behind > 0 ? "warn" : "";
      say(safe, `${each.safe_cells} of ${each.finished_cells}`);
      mark(safe, "title", behind > 0 ? `${counted(behind, "cell")} not in the store yet` : null);
      // Egress and store requests are an estimate beside it, and not in it.
      const data = Number(each.data_usd_estimate ?? 0);
      say(spent, usd(each.usd) + (data >= 0.00005 ? ` + ~${usd(data)} data` : ""));
      mark(spent, "title", data >= 0.00005 ? "data: egress and store requests, estimated" : null);
      say(price, rate(each.usd_per_hour, ""));
      this.showActions(row, each);
    });
  }

  makeSession(session) {
    const row = cells(session.name, 6, [2, 3]);
    row.children[1].append(h("span", { "aria-hidden": "true", class: "mark" }), document.createTextNode(""));
    const actions = h("div", { class: "actions" });
    row.children[2].append(actions);
    actions.addEventListener("keydown", event => {
      if (event.key === "Escape" && this.asking.delete(session.name)) {
        event.stopPropagation();
        this.showActions(row, this.of(session.name));
        row.querySelector("[data-action=ask]")?.focus();
      }
    });
    return row;
  }

  of(name) {
    return this.info.sessions.find(each => each.name === name);
  }

  showActions(row, session) {
    const name = session.name;
    const busy = this.pending.has(name);
    const on = session.node !== null;
    const wanted = this.asking.has(name)
      ? [["close", "Close for good", "danger"], ["keep", "Keep", ""]]
      : [
        ...(session.state === "parked" ? [["resume", "Resume", ""]] : []),
        ...(on || session.state === "starting" || session.state === "waiting" ? [["park", "Park", ""]] : []),
        ...(session.running ? [["interrupt", "Interrupt", ""]] : []),
        ["ask", "Close …", ""],
      ];
    const actions = row.children[2].firstChild;
    const focused = actions.contains(document.activeElement);
    keyed(actions, wanted, each => each[0], ([action, words, kind]) => h("button", {
      type: "button", class: kind, "data-action": action, onclick: () => this.press(row, name, action),
      "aria-label": label(action, name),
    }, words), button => {
      // aria-disabled and not disabled: what is disabled loses the keyboard's focus.
      mark(button, "aria-disabled", busy ? "true" : null);
    });
    if (focused && !actions.contains(document.activeElement)) actions.firstChild?.focus({ preventScroll: true });
  }

  press(row, name, action) {
    if (this.pending.has(name)) return;
    const session = this.of(name);
    if (!session) return;
    if (action === "ask" || action === "keep") {
      if (action === "ask") this.asking.add(name);
      else this.asking.delete(name);
      this.showActions(row, session);
      row.querySelector(action === "ask" ? "[data-action=keep]" : "[data-action=ask]")?.focus();
      return;
    }
    this.asking.delete(name);
    const asked = id("act");
    this.pending.set(name, asked);
    say(this.note, `${{ park: "parking", resume: "resuming", close: "closing", interrupt: "interrupting" }[action]} ${name} …`);
    this.model.send({ kind: "act", id: asked, action, session: name, execution: session.running });
    this.showActions(row, session);
  }

  answered(message) {
    if (message.kind !== "acted") return;
    for (const [name, asked] of this.pending) {
      if (asked !== message.id) continue;
      this.pending.delete(name);
      say(this.note, message.text);
      this.show();
    }
  }

  showAttempts(info) {
    const failed = info.attempts.filter(each => each.what !== "launched").reverse();
    this.attempts.hidden = !failed.length;
    say(this.attempts.firstChild, `${counted(failed.length, "offer")} could not be had within the last hour`);
    keyed(this.tried, failed.slice(0, 20), each => `${each.at}${each.zone}${each.instance_type}${each.market}`,
      () => h("li"), (row, each) => {
        const offer = `${each.instance_type} ${each.market} ${each.zone}`.trim() || "every offer";
        const again = each.until ? `; again at ${clock(new Date(each.until))}` : "";
        const price = Number(each.usd_per_hour) ? ` ${rate(each.usd_per_hour)}` : "";
        say(row, `${clock(new Date(each.at))} ${offer}${price}: ${each.what}: ${each.detail}${again}`);
      });
  }
}

// A part of 1 as a number with a bar below it; null: it is not known.
function level(cell, part, words, instead = "") {
  if (!cell.firstElementChild) cell.replaceChildren(h("span"), h("div", { class: "level" }, h("div")));
  const [text, bar] = cell.children;
  const known = part !== null && part !== undefined;
  say(text, known ? `${Math.round(Math.min(1, part) * 100)} %` : instead);
  bar.hidden = !known;
  if (known) bar.firstElementChild.style.width = `${Math.min(1, part) * 100}%`;
  cell.classList.toggle("quiet", !known);
  mark(cell, "title", known ? words : null);
}

function gb(bytes) {
  return (bytes / 1e9).toFixed(1);
}

function whoseBudget(budget) {
  const kind = ["session", "user", "job"].find(each => budget[each]);
  return kind ? `${kind} ${budget[kind]}` : "cluster";
}

function showBudget(row, budget) {
  const [bar, text] = row.children;
  const part = Number(budget.spent_usd) / Number(budget.limit_usd);
  const whose = whoseBudget(budget);
  const left = Math.max(0, Number(budget.limit_usd) - Number(budget.spent_usd));
  const state = budget.refuses ? " · spent: new work is refused" : "";
  const words = `${whose}: ${usd(budget.spent_usd)} of $${budget.limit} (${Math.round(part * 100)} %), ${usd(left)} left${state}`;
  const level = budget.refuses || part >= 1 ? "bad" : part >= Math.min(...budget.alerts, 1) ? "warn" : "";
  bar.firstChild.style.width = `${Math.min(100, part * 100).toFixed(2)}%`;
  bar.className = `bar ${level}`;
  mark(bar, "aria-label", `Budget of ${whose}`);
  mark(bar, "aria-valuemax", Number(budget.limit_usd));
  mark(bar, "aria-valuenow", Math.min(Number(budget.limit_usd), Number(budget.spent_usd)));
  mark(bar, "aria-valuetext", words);
  text.className = level;
  say(text, words);
}

function label(action, name) {
  return {
    park: `Park session ${name}`, resume: `Resume session ${name}`, interrupt: `Interrupt session ${name}`,
    ask: `Close session ${name}, asks first`, close: `Close session ${name} for good`, keep: `Keep session ${name}`,
  }[action];
}

function rows(title, heads, numbers) {
  const body = h("tbody");
  const empty = h("p", { class: "quiet" });
  const table = h("div", { class: "scroll", role: "region", "aria-label": title, tabindex: 0 },
    h("table", {}, h("caption", { class: "hidden" }, title),
      h("thead", {}, h("tr", {}, ...heads.map(each =>
        h("th", { scope: "col", class: numbers.includes(each) ? "number" : null }, each)))), body));
  return { section: h("div", {}, h("h3", {}, title), empty, table), body, empty, table };
}

function cells(name, count, numbers) {
  return h("tr", {}, h("th", { scope: "row" }, name),
    ...Array.from({ length: count }, (_, i) => h("td", { class: numbers.includes(i) ? "number" : null })));
}

export default { render };
