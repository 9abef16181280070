import { describe, expect, it } from 'vitest';

import { Clusters, Items } from './clusters';
import { settled } from './panel/lines';
import type { Server } from './server';
import { summary } from './summary';
import { told } from './told';
import type { IBudget, ISession } from './wire';
import { bytes, countdown, long, rate, usd } from './words';

const session = (state: string, more: Partial<ISession> = {}): ISession =>
  ({ name: 'exp', state, detail: '', instance_type: 'g5.xlarge', zone: 'eu-1a', ...more }) as ISession;

describe('items', () => {
  it('take what is set and what is gone, by kind', () => {
    const items = new Items();
    items.take({ info: { name: 'c' }, 'session/a': session('idle'), 'node/i-1': {}, 'budget/': {} }, []);
    expect([...items.sessions.keys()]).toEqual(['a']);
    expect(items.budgets.has('')).toBe(true);
    expect(items.jobs).toBeNull();
    items.take({ jobs: true, 'job/j-1': { id: 'j-1' }, 'later/kind': 1 }, ['session/a', 'info']);
    expect(items.sessions.size).toBe(0);
    expect(items.info).toBeNull();
    expect(items.jobs?.size).toBe(1);
  });
});

describe('toasts', () => {
  it('say that a session moves, has moved, is parked, stopped, failed', () => {
    const words = (a: string, b: string, budget?: IBudget) =>
      told(session(a), session(b), budget)?.text ?? null;
    expect(words('busy', 'moving')).toContain('moves');
    expect(words('moving', 'busy')).toContain('exp is on g5.xlarge eu-1a now');
    expect(words('idle', 'parked')).toContain('parked');
    expect(words('idle', 'parked', { refuses: 'spent' } as IBudget)).toContain('stopped: spent');
    expect(words('busy', 'failed')).toContain('failed');
    expect(words('idle', 'busy')).toBeNull();
    expect(words('parked', 'parked')).toBeNull();
    expect(told(undefined, session('failed'))).toBeNull();
  });

  it('are short, however long the reason', () => {
    const toast = told(session('busy'), session('failed', { detail: 'x'.repeat(10_000_000) }));
    expect(toast!.text.length).toBeLessThan(400);
  });
});

describe('the line of the status bar', () => {
  const budget = (limit: string, spent: string, refuses = ''): IBudget => ({
    session: null,
    limit: `${limit}/day`,
    limit_usd: limit,
    spent_usd: spent,
    period: 'day',
    ends_at: null,
    refuses
  });
  const line = (...budgets: IBudget[]) => {
    const clusters = new Clusters({} as Server);
    clusters.known = [{ name: 'a', kind: 'url', up: true, problem: '', doing: '' }];
    const items = new Items();
    items.take({ info: { usd_per_hour: '1.21', usd_today: '4.07', simulated: false } }, []);
    budgets.forEach(each => items.budgets.set('', each));
    clusters.items.set('a', items);
    return summary(clusters);
  };

  it('says what is billed, and turns amber and red with the budget', () => {
    expect(line().text).toBe('$1.21/h · $4.07 today');
    expect(line(budget('20', '4.07'))).toMatchObject({
      text: '$1.21/h · $4.07 today of $20',
      tone: ''
    });
    expect(line(budget('20', '16')).tone).toBe('warn');
    expect(line(budget('20', '20')).tone).toBe('bad');
    expect(line(budget('20', '19.5', 'the reserve is reached')).tone).toBe('bad');
  });
});

describe('words', () => {
  it('are those of the notebook', () => {
    expect([usd(0), usd(0.00001), usd('0.0042'), usd(4.07), usd(1234.5)]).toEqual([
      '$0.00',
      '<$0.0001',
      '$0.0042',
      '$4.07',
      '$1,234.50'
    ]);
    expect([rate('0.0289'), rate(1.21)]).toEqual(['$0.0289/h', '$1.21/h']);
    expect([bytes(17), bytes(8.4e6), bytes(40e9)]).toEqual(['17 B', '8.4 MB', '40 GB']);
    expect([long(59), long(61), long(3600 * 2 + 300), long(86400 * 3)]).toEqual([
      '59 s',
      '1 min',
      '2 h 5 min',
      '3 days'
    ]);
    expect(countdown('2026-01-01T00:02:05Z', Date.parse('2026-01-01T00:01:00Z'))).toBe('1:05');
  });
});

describe('lines of a log', () => {
  it('are as a terminal leaves them', () => {
    expect(settled('10 %\r50 %\r100 %')).toBe('100 %');
    expect(settled('\u001b[31mred\u001b[0m')).toBe('red');
    expect(settled('x'.repeat(10_000)).length).toBeLessThan(2100);
    // What comes next writes over it.
    expect(settled(`${settled('10 %\r')}20 %`)).toBe('20 %');
  });
});
