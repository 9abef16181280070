/** What rows are put together from: the row itself, its lines, marks and tones. */

import { h, short } from '../../dom';
import type { IRead } from '../reading';
import type { IRow } from '../tree';

/** Heights of rows of one line and of two, in pixels. */
export const LINE = 26;
export const TWO = 44;
const LETTER = 6.4; // pixels of a note's letter, with what is lost where a line wraps
const INDENTS: Record<number, number> = { 1: 4, 2: 8, 3: 16, 4: 34 }; // as in the style
/** The mark of each state of sessions and jobs. */
export const MARKS: Record<string, string> = {
  starting: '◌',
  idle: '○',
  busy: '●',
  waiting: '◌',
  moving: '→',
  parked: '‖',
  closed: '×',
  failed: '✕',
  queued: '◌',
  scheduled: '◷',
  running: '●',
  done: '✓',
  cancelled: '×'
};

/** A row. `facts`: what it shows, drawn anew where that differs; `open`: undefined has no twisty. */
export function row(
  kind: string,
  key: string,
  level: number,
  height: IRow['height'],
  facts: () => unknown,
  open: boolean | undefined,
  draw: () => (Node | string)[]
): IRow {
  const made: IRow = {
    kind,
    key,
    level,
    height,
    facts: () => JSON.stringify(facts()) + String(open),
    draw: () => [twisty(open), h('div', { class: 'mlcloud-cell' }, ...draw())]
  };
  return open === undefined ? made : { ...made, open };
}

/** Words in a row of their own, as high as they need at its width. */
export function note(key: string, level: number, text: string, tone = 'quiet'): IRow {
  const words = short(text);
  const height = (width: number) => {
    const there = Math.max(80, width - 24 - (INDENTS[level] ?? 34));
    return 10 + 16 * Math.min(10, Math.max(1, Math.ceil((words.length * LETTER) / there)));
  };
  return row('note', key, level, height, () => words, undefined, () => [
    h('div', { class: `mlcloud-note ${tone}` }, words)
  ]);
}

/** What is still read, or cannot be. */
export function unread(of: string, level: number, found: IRead<unknown>): IRow {
  return found.problem
    ? note(`${of}/problem`, level, found.problem, 'bad')
    : note(`${of}/reading`, level, 'reading …');
}

export function line(...parts: (Node | null)[]): HTMLElement {
  return h('div', { class: 'mlcloud-line' }, ...parts);
}

/** What there is of these, in small print. */
export function quiet(parts: (string | false | null | undefined)[]): HTMLElement {
  const text = parts.filter(Boolean).join(' · ');
  return h('div', { class: 'mlcloud-quiet', title: text }, text);
}

export function buttons(...all: (Node | null)[]): HTMLElement {
  return h('span', { class: 'mlcloud-buttons' }, ...all);
}

export function mark(text: string, tone: string): HTMLElement {
  return h('span', { class: `mlcloud-mark ${tone}`, 'aria-hidden': 'true' }, text);
}

function twisty(open: boolean | undefined): HTMLElement {
  const text = open === undefined ? '' : open ? '▾' : '▸';
  return h('span', { class: 'mlcloud-twisty', 'aria-hidden': 'true' }, text);
}

/** The colour of a state of sessions and jobs, as a class of the style. */
export function tone(state: string): string {
  if (state === 'failed') {
    return 'bad';
  }
  if (['moving', 'starting', 'waiting', 'queued'].includes(state)) {
    return 'warn';
  }
  return ['busy', 'idle', 'running', 'done'].includes(state) ? 'good' : '';
}
