/** Training checkpoints in a cluster's store: the series, and the steps of one. */

import { h } from '../../dom';
import { bytes, counted, since } from '../../words';
import type { ISeries, IStep } from '../../wire';
import type { IRow } from '../tree';
import { LINE, line, note, quiet, row, TWO, unread } from './pieces';
import type { IView } from './view';

/** Those in the cluster's store. Nothing is read while they are not looked at. */
export function checkpoints(view: IView, of: string): IRow[] {
  const key = `cluster/${of}/Checkpoints`;
  const open = view.isOpen(key, false);
  const found = open ? view.series(of) : null;
  const count = found?.value?.length ?? null;
  const head = row('group', key, 2, LINE, () => count, open, () => [
    line(
      h('span', { class: 'mlcloud-title' }, 'Checkpoints'),
      h('span', { class: 'mlcloud-count' }, count === null ? '' : count.toLocaleString('en-US'))
    )
  ]);
  if (!found) {
    return [head];
  }
  if (found.problem || !found.value) {
    return [head, unread(key, 3, found)];
  }
  const none = 'None in its store: mlcloud.resumable saves there, or mlcloud.Checkpoints.';
  return [
    head,
    ...(count ? found.value.flatMap(each => series(view, of, each)) : [note(`${key}/none`, 3, none)])
  ];
}

function series(view: IView, of: string, each: ISeries): IRow[] {
  const key = `cluster/${of}/series/${each.name}`;
  const open = view.isOpen(key, false);
  const age = () => since(each.written_at, view.now);
  const head = row('series', key, 3, TWO, () => [each, age()], open, () => [
    line(
      h('span', { class: 'mlcloud-name', title: each.name }, each.session ?? each.job ?? each.name),
      h('span', { class: 'mlcloud-money' }, `step ${each.newest.toLocaleString('en-US')}`)
    ),
    quiet([
      `${age()} ago`,
      counted(each.steps, 'step'),
      each.session ? 'of a session' : each.job ? 'of a job' : ''
    ])
  ]);
  if (!open) {
    return [head];
  }
  const found = view.steps(of, each);
  if (found.problem || !found.value) {
    return [head, unread(key, 4, found)];
  }
  const more = each.steps - found.value.length;
  return [
    head,
    ...found.value.map(one => step(view, key, one)),
    ...(more > 0 ? [note(`${key}/more`, 4, `and ${counted(more, 'earlier step')}`)] : [])
  ];
}

function step(view: IView, of: string, each: IStep): IRow {
  const key = `${of}/step/${each.step}`;
  const number = each.step.toLocaleString('en-US');
  if (each.fault) {
    return note(key, 4, `step ${number} is ${each.fault}: ${each.problem}`, 'bad');
  }
  const age = () => (each.created_at ? since(each.created_at, view.now) : '');
  return row('detail', key, 4, LINE, () => [each, age()], undefined, () => [
    line(
      h('span', {}, `step ${number}`),
      h(
        'span',
        { class: 'mlcloud-quiet' },
        [
          age(),
          each.metric === null ? '' : `metric ${Number(each.metric.toPrecision(4))}`,
          each.complete ? 'the end' : ''
        ]
          .filter(Boolean)
          .join(' · ')
      ),
      h('span', { class: 'mlcloud-money' }, `${bytes(each.bytes)}, ${bytes(each.new_bytes)} new`)
    )
  ]);
}
