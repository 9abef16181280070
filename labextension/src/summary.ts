/** All clusters in one line: `$1.21/h · $4.07 today of $20`. */

import type { Clusters } from './clusters';
import type { IBudget } from './wire';
import { rate, usd } from './words';

export interface ISummary {
  text: string;
  /** How the tightest budget stands. */
  tone: '' | 'warn' | 'bad';
  /** For who points at it. */
  title: string;
}

export function summary(clusters: Clusters): ISummary {
  let perHour = 0;
  let today = 0;
  let simulated = false;
  const limits: IBudget[] = [];
  const up = (clusters.known ?? []).filter(each => each.up);
  for (const { name } of up) {
    const items = clusters.items.get(name);
    if (items?.info) {
      perHour += Number(items.info.usd_per_hour);
      today += Number(items.info.usd_today);
      simulated ||= items.info.simulated;
      limits.push(...items.budgets.values());
    }
  }
  const daily = limits.filter(each => each.session === null && each.period === 'day');
  const of = daily.reduce((sum, each) => sum + Number(each.limit_usd), 0);
  const tones = limits.map(standing);
  const tone = tones.includes('bad') ? 'bad' : tones.includes('warn') ? 'warn' : '';
  const tight = limits.filter(each => standing(each) !== '');
  const title = [
    simulated ? 'mlcloud, simulated prices: nobody is charged.' : 'mlcloud.',
    ...tight.map(each => each.refuses || `${usd(each.spent_usd)} of $${each.limit} are spent.`),
    'Click: clusters, sessions and jobs.'
  ].join(' ');
  if (!up.length) {
    return { text: '$0/h', tone, title: `No cluster is up. ${title}` };
  }
  const limit = of ? ` of $${of.toLocaleString('en-US')}` : '';
  return { text: `${rate(perHour)} · ${usd(today)} today${limit}`, tone, title };
}

/** Of no colour, amber from four fifths, red where it is spent. */
export function standing(budget: IBudget): '' | 'warn' | 'bad' {
  const part = Number(budget.spent_usd) / Number(budget.limit_usd);
  return budget.refuses || part >= 1 ? 'bad' : part >= 0.8 ? 'warn' : '';
}
