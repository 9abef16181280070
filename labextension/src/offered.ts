/** What a `cluster.yaml` would bring up, in words, for whoever is asked. */

import type { IFile, IFileGroup } from './wire';
import { counted, rate } from './words';

/** Title, text and button of the question. */
export function offered(file: IFile): [string, string, string] {
  if (file.changes?.length) {
    return [
      `Let ${file.cluster} be as ${file.path} says?`,
      `It runs, and differs in: ${file.changes.join('; ')}.`,
      'Apply'
    ];
  }
  const head = file.notes.filter(note => note.startsWith('bills while')).map(note => ` ${capital(note)}.`);
  const budget = file.budget.length ? ` Its budget: $${file.budget.join(', $')}.` : ' It has no budget.';
  const paid = file.simulated ? ' Prices are simulated: nobody is charged.' : '';
  return [
    `Bring ${file.cluster} up on ${file.cloud}?`,
    `${file.groups.map(group).join(' ')}${head.join('')}${budget}${paid}`,
    'Bring up'
  ];
}

/** `from $0.0787/h`: the cheapest node it may rent. */
export function from(file: IFile): string {
  const prices = file.groups.map(each => Number(each.usd_per_hour));
  return prices.length ? `from ${rate(Math.min(...prices))}` : '';
}

/** `at most 6 nodes`; nothing where a group has no limit. */
export function most(file: IFile): string {
  const all = file.groups.map(each => each.max);
  const sum = all.reduce<number>((so, each) => so + (each ?? NaN), 0);
  return all.length && !Number.isNaN(sum) ? `at most ${counted(sum, 'node')}` : '';
}

/** Where a group's nodes would be rented first. */
export function first(each: IFileGroup): string {
  const saved = each.saving === null ? '' : `, ${Math.round(100 * each.saving)} % saved`;
  return `${each.instance_type} ${each.market} in ${each.zone}${saved}`;
}

function group(each: IFileGroup): string {
  const count = each.max === null ? '' : `${each.min} to ${counted(each.max, 'node')}, `;
  return `${each.name}: ${count}${rate(each.usd_per_hour)} each (${first(each)}).`;
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
