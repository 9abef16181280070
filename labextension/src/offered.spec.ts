import { describe, expect, it } from 'vitest';

import { from, most, offered } from './offered';
import type { IFile, IFileGroup } from './wire';

const group = (more: Partial<IFileGroup> = {}): IFileGroup => ({
  name: 'a10g-1',
  min: 0,
  max: 4,
  offers: 48,
  instance_type: 'g5.xlarge',
  gpu: 'A10G:1',
  market: 'spot',
  zone: 'eu-central-1a',
  usd_per_hour: '0.6178',
  saving: 0.51,
  ...more
});
const file = (more: Partial<IFile> = {}): IFile => ({
  path: 'a/cluster.yaml',
  cluster: 'gpus',
  cloud: 'aws',
  budget: ['50/day'],
  problems: [],
  groups: [group()],
  notes: ['time to the first cell: 3 min', 'bills while the cluster is up: the head $0.096/h'],
  simulated: false,
  changes: null,
  ...more
});

describe('what a file would bring up', () => {
  it('is asked with its prices, what bills at once, and its budget', () => {
    expect(offered(file())).toEqual([
      'Bring gpus up on aws?',
      'a10g-1: 0 to 4 nodes, $0.62/h each (g5.xlarge spot in eu-central-1a, 51 % saved). ' +
        'Bills while the cluster is up: the head $0.096/h. Its budget: $50/day.',
      'Bring up'
    ]);
    expect(offered(file({ budget: [], simulated: true }))[1]).toContain(
      'It has no budget. Prices are simulated: nobody is charged.'
    );
  });

  it('names what differs of one that runs', () => {
    const [title, text, act] = offered(file({ changes: ['budget: 20/day → 50/day (applied in place)'] }));
    expect(title).toBe('Let gpus be as a/cluster.yaml says?');
    expect(text).toContain('budget: 20/day → 50/day');
    expect(act).toBe('Apply');
  });

  it('is summed in a line', () => {
    const two = file({ groups: [group(), group({ usd_per_hour: '0.0787', max: 2 })] });
    expect([from(two), most(two)]).toEqual(['from $0.0787/h', 'at most 6 nodes']);
    expect(most(file({ groups: [group({ max: null })] }))).toBe('');
    expect([from(file({ groups: [] })), most(file({ groups: [] }))]).toEqual(['', '']);
  });
});
