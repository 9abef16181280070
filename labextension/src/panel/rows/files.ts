/** A `cluster.yaml`: what it would bring up, what is wrong in it, how it differs from what runs. */

import { button, h } from '../../dom';
import { first, from, most } from '../../offered';
import { counted, rate } from '../../words';
import type { IFile } from '../../wire';
import type { IRow } from '../tree';
import { buttons, line, note, quiet, row, TWO } from './pieces';
import type { IView } from './view';

export function file(view: IView, each: IFile): IRow[] {
  const key = `file/${each.path}`;
  const open = view.isOpen(key, false);
  const wrong = each.problems.length;
  const there = view.clusters.known?.find(known => known.name === each.cluster);
  const off = view.actions.busy(`up ${each.cluster}`) || Boolean(there?.doing);
  const runs = each.changes !== null;
  const name = each.path.split('/').pop()!;
  const made = row('file', key, 1, TWO, () => [each, off], open, () => [
    line(
      h('span', { class: 'mlcloud-name', title: each.path }, name),
      h('span', { class: 'mlcloud-money' }, from(each)),
      buttons(
        wrong || (runs && !each.changes!.length)
          ? null
          : button(
              runs ? 'Apply' : 'Up',
              runs
                ? `Let ${each.cluster} be as ${each.path} says, asks first`
                : `Bring ${each.cluster} up as ${each.path} says, asks first`,
              () => void view.actions.upAs(each),
              { name: 'up', off }
            )
      )
    ),
    wrong
      ? h('div', { class: 'mlcloud-quiet bad' }, counted(wrong, 'problem'))
      : quiet([
          `${each.cluster} on ${each.cloud}`,
          runs && (each.changes!.length ? `runs, ${counted(each.changes!.length, 'change')}` : 'runs as it says'),
          most(each),
          each.budget.length > 0 && `budget $${each.budget.join(', $')}`,
          each.simulated && 'simulated prices'
        ])
  ]);
  if (!open) {
    return [made];
  }
  return [
    made,
    ...each.problems.map(({ line: at, field, text }, index) => {
      const place = [at === null ? '' : `line ${at}`, field].filter(Boolean).join(', ');
      return note(`${key}/problem/${index}`, 2, place ? `${place}: ${text}` : text, 'bad');
    }),
    ...each.groups.map(group =>
      row('detail', `${key}/group/${group.name}`, 2, TWO, () => group, undefined, () => [
        line(
          h('span', {}, group.name),
          h(
            'span',
            { class: 'mlcloud-quiet' },
            group.max === null ? '' : `${group.min} to ${counted(group.max, 'node')}`
          ),
          h('span', { class: 'mlcloud-money' }, rate(group.usd_per_hour))
        ),
        quiet([first(group), counted(group.offers, 'offer')])
      ])
    ),
    ...(each.changes ?? []).map((text, index) => note(`${key}/change/${index}`, 2, text)),
    ...each.notes.map((text, index) => note(`${key}/note/${index}`, 2, text))
  ];
}
