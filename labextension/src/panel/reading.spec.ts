import { describe, expect, it } from 'vitest';

import { Reading } from './reading';

/** A read that is answered when the test says so. */
function asked() {
  const open: ((value: string | Error) => void)[] = [];
  const read = () =>
    new Promise<string>((done, failed) =>
      open.push(value => (value instanceof Error ? failed(value) : done(value)))
    );
  return { open, read };
}

const settled = () => new Promise(done => setTimeout(done));

describe('what a row that is open reads', () => {
  it('is read once, and again when the version is another', async () => {
    const { open, read } = asked();
    let changed = 0;
    const reading = new Reading<string>(() => changed++);
    expect(reading.get('a', '1', read).value).toBeNull();
    reading.get('a', '2', read); // while the first is under way: not a second one
    expect(open.length).toBe(1);
    open[0]!('first');
    await settled();
    expect(changed).toBe(1);
    expect(reading.get('a', '2', read).value).toBe('first'); // shown while the next is read
    expect(open.length).toBe(2);
    open[1]!('second');
    await settled();
    expect(reading.get('a', '2', read).value).toBe('second');
    expect(open.length).toBe(2);
  });

  it('says why it cannot be read, and tries again at the next version only', async () => {
    const { open, read } = asked();
    const reading = new Reading<string>(() => undefined);
    reading.get('a', '1', read);
    open[0]!(new Error('the store does not answer'));
    await settled();
    expect(reading.get('a', '1', read).problem).toBe('the store does not answer');
    expect(open.length).toBe(1);
    reading.get('a', '2', read);
    open[1]!('there');
    await settled();
    expect(reading.get('a', '2', read)).toMatchObject({ value: 'there', problem: '' });
  });

  it('is not read more often than its pause', async () => {
    const { open, read } = asked();
    let changed = 0;
    const reading = new Reading<string>(() => changed++, 50);
    reading.get('a', '1', read);
    open[0]!('first');
    await settled();
    reading.get('a', '2', read);
    reading.get('a', '3', read);
    expect(open.length).toBe(1);
    await new Promise(done => setTimeout(done, 80));
    expect(changed).toBe(2); // who draws is told, and asks again
    reading.get('a', '3', read);
    expect(open.length).toBe(2);
  });
});
