import type { ICellModel } from '@jupyterlab/cells';
import { beforeEach, describe, expect, it, vi } from 'vitest';

import { factsIn, factsOf, keep, Running } from './facts';
import { optionsOf, withOptions } from './remote';
import { brief, long, seconds, total, usd } from './words';

const bill = {
  execution_id: 'x-1',
  session: 'exp',
  seconds: 12.4,
  usd: '0.0011',
  saved_usd: '0.0024',
  instance_type: 'g5.xlarge',
  market: 'spot',
  zone: 'us-east-1b',
  moves: 1,
  simulated: false
};

function model(): ICellModel {
  const metadata: Record<string, unknown> = {};
  return {
    getMetadata: (key: string) => metadata[key],
    setMetadata: (key: string, value: unknown) => (metadata[key] = value)
  } as unknown as ICellModel;
}

describe('%%remote', () => {
  it('is found where it is the first line, with its options', () => {
    expect(optionsOf('%%remote')).toBe('');
    expect(optionsOf('\n  %%remote --gpu A10G:1 \nx')).toBe('--gpu A10G:1');
    expect(optionsOf('%%remotely\nx')).toBeNull();
    expect(optionsOf('x\n%%remote')).toBeNull();
    expect(optionsOf('')).toBeNull();
  });

  it('is put there, changed, and taken away again', () => {
    expect(withOptions('x = 1', '--spot')).toBe('%%remote --spot\nx = 1');
    expect(withOptions('%%remote --spot\nx = 1', null)).toBe('x = 1');
    expect(withOptions('%%remote\nx', '--cpus 4')).toBe('%%remote --cpus 4\nx');
    expect(withOptions('%%remote', null)).toBe('');
    expect(withOptions('', '')).toBe('%%remote\n');
  });
});

describe('words', () => {
  it('are those of the footer', () => {
    expect([0, 0.00001, 0.00114, 0.0123, 12.345, 1234.5].map(usd)).toEqual([
      ...['$0.00', '<$0.0001', '$0.0011', '$0.012', '$12.35', '$1,234.50']
    ]);
    expect([0.34, 12.44, 192, 7500].map(seconds)).toEqual([
      ...['340 ms', '12.4 s', '3 min 12 s', '2 h 05 min']
    ]);
    expect(brief({ ...bill, state: 'running' })).toBe('running in exp');
    expect(brief(bill)).toBe('g5.xlarge · 12.4 s · $0.0011');
    expect(long(bill).split('\n')).toEqual([
      ...['session exp', 'g5.xlarge spot us-east-1b', '$0.0011, $0.0024 less than on demand'],
      'moved once'
    ]);
    expect(total([])).toBeNull();
    expect(total([bill, { ...bill, simulated: true }])).toBe(
      '2 remote cells: 24.8 s, $0.0022 (simulated prices)'
    );
  });
});

describe('facts', () => {
  let kept: Map<string, string>;

  beforeEach(() => {
    kept = new Map();
    vi.stubGlobal('localStorage', {
      getItem: (key: string) => kept.get(key) ?? null,
      setItem: (key: string, value: string) => kept.set(key, value),
      removeItem: (key: string) => kept.delete(key)
    });
  });

  it('of a message are those with a state or a bill', () => {
    expect(factsIn({ mlcloud: bill })).toBe(bill);
    expect(factsIn({ mlcloud: { line: 'asking for a node' } })).toBeNull();
    expect(factsIn({ mlcloud: { execution_id: 'x-1', session: 'exp' } })).toBeNull();
    expect(factsIn(undefined)).toBeNull();
  });

  it('replace those of the execution before, and add to those of the same one', () => {
    const cell = model();
    keep(cell, { execution_id: 'x-1', session: 'exp', state: 'running' });
    keep(cell, { ...bill, state: 'error' });
    keep(cell, bill); // the footer, which says no state
    expect(factsOf(cell)).toEqual({ ...bill, state: 'error' });
    keep(cell, { execution_id: 'x-2', session: 'exp', state: 'running' });
    expect(factsOf(cell)).toEqual({ execution_id: 'x-2', session: 'exp', state: 'running' });
    keep(cell, { ...bill, execution_id: 'x-2' }); // of a cell that ran in the background
    expect(factsOf(cell)?.state).toBeUndefined();
  });

  it('of what runs are there after a reload', () => {
    new Running('a.ipynb').begin('cell', bill);
    expect(new Running('a.ipynb').all).toEqual({ cell: bill });
    expect(new Running('b.ipynb').all).toEqual({});
    new Running('a.ipynb').end('cell');
    expect(new Running('a.ipynb').all).toEqual({});
    expect(kept.size).toBe(0);
  });
});
