/**
 * A tree of any length: only the rows that are seen are in the page.
 *
 *   show(rows) ─► offsets ─► the rows in view, each drawn anew only where its `facts` differ
 *
 * While it is drawn, the page is not asked for its layout: where it is scrolled to, and how high it
 * is, are told by events.
 *
 * Keys as in the ARIA practices' tree (https://www.w3.org/WAI/ARIA/apg/patterns/treeview): arrows,
 * Home, End, Page keys; Right opens and Left closes or goes to the parent; Enter opens or closes.
 * One row is in the Tab order, and after it its buttons. The row with the focus stays in the page.
 */

import { h, patch } from '../dom';

const BEYOND = 200; // pixels drawn above and below

export interface IRow {
  key: string;
  level: number;
  /** In pixels; of a text that wraps, what it takes at the tree's width. */
  height: number | ((width: number) => number);
  /** Undefined: it has nothing below it. */
  open?: boolean;
  /** What it is drawn from: where this is the same, it is not drawn again. Asked of rows in view. */
  facts(): string;
  draw(): (Node | string)[];
  /** Of the row's element. */
  kind: string;
}

interface IDrawn {
  element: HTMLElement;
  facts: string;
}

export class Tree {
  readonly node: HTMLElement;

  constructor(
    name: string,
    private _toggle: (key: string, open: boolean) => void
  ) {
    this._body = h('div', { class: 'mlcloud-tree-body', role: 'presentation' });
    this.node = h('div', { class: 'mlcloud-tree', role: 'tree', 'aria-label': name }, this._body);
    this.node.addEventListener('scroll', () => this._scrolled(), { passive: true });
    this.node.addEventListener('keydown', event => this._key(event));
    this.node.addEventListener('focusin', event => this._focused(event.target as HTMLElement));
    this.node.addEventListener('click', event => this._click(event));
    this._sized = new ResizeObserver(entries => {
      const { width, height } = entries[entries.length - 1]!.contentRect;
      this._height = height;
      this._top = this.node.scrollTop; // the layout is made: this costs nothing
      if (width && width !== this._width) {
        this._width = width;
        this.show(this._rows);
      } else {
        this._later();
      }
    });
    this._sized.observe(this.node);
  }

  dispose(): void {
    this._sized.disconnect();
    cancelAnimationFrame(this._frame);
  }

  show(rows: IRow[]): void {
    this._rows = rows;
    this._at = new Map(rows.map((row, index) => [row.key, index]));
    this._tops = [];
    let top = 0;
    for (const { height } of rows) {
      this._tops.push(top);
      top += typeof height === 'number' ? height : height(this._width);
    }
    this._tops.push(top);
    const height = `${top}px`;
    if (this._body.style.height !== height) {
      this._body.style.height = height;
    }
    if (!this._at.has(this._active)) {
      // What had the focus is gone: its place has it now.
      const near = rows[Math.min(this._activeAt, rows.length - 1)];
      const had = this._drawn.get(this._active)?.element.contains(document.activeElement);
      this._active = near?.key ?? '';
      this._activeAt = this._at.get(this._active) ?? 0;
      this.draw();
      if (had) {
        this._drawn.get(this._active)?.element.focus();
      }
      return;
    }
    this._activeAt = this._at.get(this._active) ?? 0;
    this.draw();
  }

  /** The rows in view. */
  draw(): void {
    cancelAnimationFrame(this._frame);
    this._frame = 0;
    const first = this._indexAt(this._top - BEYOND);
    const last = this._indexAt(this._top + this._height + BEYOND);
    const wanted = new Set<string>();
    for (let index = first; index <= last && index < this._rows.length; index++) {
      wanted.add(this._rows[index]!.key);
    }
    if (this._at.has(this._active)) {
      wanted.add(this._active);
    }
    for (const [key, drawn] of this._drawn) {
      if (!wanted.has(key)) {
        drawn.element.remove();
        this._drawn.delete(key);
      }
    }
    let before: HTMLElement | null = null;
    for (const key of [...wanted].sort((a, b) => this._at.get(a)! - this._at.get(b)!)) {
      const element = this._drawRow(this._at.get(key)!);
      // In the order of the rows: Tab and screen readers follow it.
      const next: ChildNode | null = before ? before.nextSibling : this._body.firstChild;
      if (next !== element) {
        this._body.insertBefore(element, next);
      }
      before = element;
    }
  }

  /** Bring a row into view, and to the front of the Tab order. */
  activate(key: string, focus: boolean): void {
    const index = this._at.get(key);
    if (index === undefined) {
      return;
    }
    this._active = key;
    this._activeAt = index;
    const top = this._tops[index]!;
    const bottom = this._tops[index + 1]!;
    if (top < this._top) {
      this._scroll(top);
    } else if (bottom > this._top + this._height) {
      this._scroll(bottom - this._height);
    }
    this.draw();
    if (focus) {
      this._drawn.get(key)?.element.focus({ preventScroll: true });
    }
  }

  private _scroll(top: number): void {
    this.node.scrollTop = this._top = top;
  }

  private _scrolled(): void {
    this._top = this.node.scrollTop;
    this._later();
  }

  /** Once in the next frame, however often it is asked for. */
  private _later(): void {
    this._frame ||= requestAnimationFrame(() => this.draw());
  }

  private _drawRow(index: number): HTMLElement {
    const row = this._rows[index]!;
    let drawn = this._drawn.get(row.key);
    if (!drawn) {
      const element = h('div', { role: 'treeitem', class: `mlcloud-row mlcloud-${row.kind}` });
      element.dataset.key = row.key;
      drawn = { element, facts: '\0' };
      this._drawn.set(row.key, drawn);
    }
    const { element } = drawn;
    set(element, 'aria-level', row.level);
    set(element, 'aria-expanded', row.open ?? null);
    set(element, 'tabindex', row.key === this._active ? 0 : -1);
    const top = `${this._tops[index]}px`;
    if (element.style.top !== top) {
      element.style.top = top;
    }
    const height = `${this._tops[index + 1]! - this._tops[index]!}px`;
    if (element.style.height !== height) {
      element.style.height = height;
    }
    const facts = row.facts();
    if (drawn.facts !== facts) {
      const at = this._focusedButton(element);
      drawn.facts = facts;
      patch(element, row.draw());
      if (at !== null && this._focusedButton(element) !== at) {
        const again = [...element.querySelectorAll('button')].find(each => each.name === at);
        (again ?? element).focus({ preventScroll: true });
      }
    }
    for (const each of element.getElementsByTagName('button')) {
      set(each, 'tabindex', row.key === this._active ? 0 : -1);
    }
    return element;
  }

  /** The name of the button that has the focus, if one of this row has it. */
  private _focusedButton(element: HTMLElement): string | null {
    const focused = document.activeElement;
    return focused instanceof HTMLButtonElement && element.contains(focused) ? focused.name : null;
  }

  private _focused(target: HTMLElement): void {
    const key = target.closest<HTMLElement>('[role=treeitem]')?.dataset.key;
    if (key !== undefined && key !== this._active) {
      this._active = key;
      this._activeAt = this._at.get(key) ?? 0;
      this.draw();
    }
  }

  private _click(event: MouseEvent): void {
    const key = (event.target as HTMLElement).closest<HTMLElement>('[role=treeitem]')?.dataset.key;
    const row = key === undefined ? undefined : this._rows[this._at.get(key) ?? -1];
    if (row) {
      this.activate(row.key, true);
      if (row.open !== undefined) {
        this._toggle(row.key, !row.open);
      }
    }
  }

  private _key(event: KeyboardEvent): void {
    const row = this._rows[this._activeAt];
    if (!row || event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    const onRow = (event.target as HTMLElement).role === 'treeitem';
    const tall = this._tops[this._activeAt + 1]! - this._tops[this._activeAt]!;
    const page = Math.max(1, Math.floor(this._height / tall) - 1);
    const steps: Record<string, number> = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      Home: -Infinity,
      End: Infinity
    };
    const step = steps[event.key];
    if (step !== undefined) {
      const next = Math.max(0, Math.min(this._rows.length - 1, this._activeAt + step));
      this.activate(this._rows[next]!.key, true);
    } else if (event.key === 'Escape' && !onRow) {
      this.activate(row.key, true);
    } else if (!onRow) {
      return;
    } else if ((event.key === 'Enter' || event.key === ' ') && row.open !== undefined) {
      this._toggle(row.key, !row.open);
    } else if (event.key === 'ArrowRight' && row.open === false) {
      this._toggle(row.key, true);
    } else if (event.key === 'ArrowRight' && row.open) {
      const next = this._rows[this._activeAt + 1];
      if (next && next.level > row.level) {
        this.activate(next.key, true);
      }
    } else if (event.key === 'ArrowLeft' && row.open) {
      this._toggle(row.key, false);
    } else if (event.key === 'ArrowLeft') {
      for (let index = this._activeAt - 1; index >= 0; index--) {
        if (this._rows[index]!.level < row.level) {
          this.activate(this._rows[index]!.key, true);
          break;
        }
      }
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  /** The row at this height. */
  private _indexAt(y: number): number {
    let low = 0;
    let high = this._rows.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this._tops[middle]! <= y) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return Math.max(0, low);
  }

  private _body: HTMLElement;
  private _rows: IRow[] = [];
  private _at = new Map<string, number>();
  /** Where each row begins, and where the last one ends. */
  private _tops: number[] = [];
  private _drawn = new Map<string, IDrawn>();
  private _active = '';
  private _activeAt = 0;
  private _top = 0;
  private _height = 0;
  private _width = 260;
  private _frame = 0;
  private _sized: ResizeObserver;
}

function set(element: HTMLElement, name: string, value: string | number | boolean | null): void {
  if (value === null) {
    element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, String(value));
  }
}
