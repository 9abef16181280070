/**
 * A log that grows: only the lines in view are in the page, and the newest 100,000 are kept.
 *
 * It follows the end as long as the end is in view.
 */

import { h, say } from '../dom';
import { settled } from './lines';

export const MOST = 100_000;
const LINE = 16; // pixels

export class LogView {
  readonly node: HTMLElement;

  constructor(name: string) {
    this._lines = [''];
    this._pool = h('div', { class: 'mlcloud-log-lines' });
    this._body = h('div', { class: 'mlcloud-log-body' }, this._pool);
    this.node = h(
      'div',
      { class: 'mlcloud-log', role: 'log', 'aria-label': name, 'aria-live': 'off', tabindex: 0 },
      this._body
    );
    this.node.addEventListener('scroll', () => this._scrolled(), { passive: true });
    this._sized = new ResizeObserver(() => this._later());
    this._sized.observe(this.node);
  }

  /** How many lines were left out at its beginning. */
  dropped = 0;

  get length(): number {
    const last = this._lines[this._lines.length - 1];
    return this._lines.length - (last === '' ? 1 : 0);
  }

  append(text: string): void {
    const parts = text.split('\n');
    this._lines[this._lines.length - 1] += parts[0]!;
    for (let index = 1; index < parts.length; index++) {
      this._lines.push(parts[index]!);
    }
    const last = this._lines.length - 1;
    for (let index = last - parts.length + 1; index <= last; index++) {
      this._lines[index] = settled(this._lines[index]!);
    }
    if (this._lines.length > MOST * 1.1) {
      const over = this._lines.length - MOST;
      this._lines.splice(0, over);
      this.dropped += over;
    }
    this._later();
  }

  dispose(): void {
    this._sized.disconnect();
    cancelAnimationFrame(this._frame);
  }

  private _later(): void {
    if (!this._frame) {
      this._frame = requestAnimationFrame(() => {
        this._frame = 0;
        this._draw();
      });
    }
  }

  private _scrolled(): void {
    const { scrollTop, clientHeight } = this.node;
    // Of what was drawn: lines may have come since, and their absence is no scrolling up.
    this._following = scrollTop + clientHeight >= this._height - LINE;
    this._later();
  }

  private _draw(): void {
    const height = (this._height = this.length * LINE);
    this._body.style.height = `${height}px`;
    if (this._following) {
      this.node.scrollTop = height;
    }
    const first = Math.max(0, Math.floor(this.node.scrollTop / LINE) - 2);
    const count = Math.ceil(this.node.clientHeight / LINE) + 4;
    const shown = this._lines.slice(first, Math.min(first + count, this.length));
    this._pool.style.transform = `translateY(${first * LINE}px)`;
    while (this._pool.children.length < shown.length) {
      this._pool.append(h('div'));
    }
    while (this._pool.children.length > shown.length) {
      this._pool.lastElementChild!.remove();
    }
    shown.forEach((line, index) => say(this._pool.children[index] as HTMLElement, line));
  }

  private _lines: string[];
  private _body: HTMLElement;
  private _pool: HTMLElement;
  private _following = true;
  private _height = 0;
  private _frame = 0;
  private _sized: ResizeObserver;
}
