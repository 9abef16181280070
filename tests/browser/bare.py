"""A widget in a page of its own, without a kernel: states that a real cluster has seldom.

bare = Bare(page, Dashboard, cluster=…, at=…)   rendered; bare.set(…) as Python would
bare.sent                                       what it sent to Python
"""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page

DARK = """<style>body { background: #111; --jp-ui-font-color1: white; --jp-ui-font-color2: #b9b9b9;
  --jp-layout-color1: #111; --jp-layout-color2: #424242; --jp-border-color1: #616161;
  --jp-border-color2: #424242; }</style>"""

MOUNT = """async ([esm, state]) => {
  const module = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
  const heard = {};
  window.sent = [];
  const model = {
    get: key => state[key],
    set: (key, value) => { state[key] = value; },
    save_changes() {},
    send: message => window.sent.push(message),
    on: (name, call) => { (heard[name] ??= []).push(call); },
    off: (name, call) => { heard[name] = (heard[name] ?? []).filter(one => one !== call); },
  };
  window.tell = (name, ...words) => (heard[name] ?? []).forEach(call => call(...words));
  window.change = changed => {
    Object.assign(state, changed);
    for (const key of Object.keys(changed)) window.tell(`change:${key}`);
  };
  window.heard = heard;
  const el = document.getElementById("here");
  window.end = module.default.render({ model, el });
}"""


class Bare:
    def __init__(self, page: Page, widget: Any, *, dark: bool = False, **state: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.set_content(
            f'<html lang="en" data-jp-theme-light="{"false" if dark else "true"}">'
            f"<head><title>bare</title><style>{widget._css}</style></head>"
            f'<body>{DARK if dark else ""}<div id="here"></div></body></html>'
        )
        page.evaluate(f"document.body.dataset.jpThemeLight = {'false' if dark else 'true'}")
        page.evaluate(MOUNT, [str(widget._esm), state])

    @property
    def root(self) -> Locator:
        return self.page.locator(".mlcloud")

    @property
    def sent(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.page.evaluate("window.sent")
        return found

    def set(self, **state: Any) -> None:
        self.page.evaluate("changed => window.change(changed)", state)

    def answer(self, **message: Any) -> None:
        self.page.evaluate("message => window.tell('msg:custom', message)", message)
