/** A job: how far it is, and what it costs. */

import { button, h, short } from '../../dom';
import { counted, rate, usd } from '../../words';
import type { IJob } from '../../wire';
import type { IRow } from '../tree';
import { buttons, line, mark, MARKS, quiet, row, tone, TWO } from './pieces';
import type { IView } from './view';

const OVER = ['done', 'failed', 'cancelled'];

export function job(view: IView, of: string, each: IJob): IRow[] {
  const key = `cluster/${of}/job/${each.id}`;
  const busy = view.actions.busy(`cancel ${each.id}`);
  return [
    row('job', key, 3, TWO, () => [each, busy], undefined, () => {
      const part = each.items ? (each.done + each.failed) / each.items : 0;
      const bar = h('progress', {
        value: part,
        max: 1,
        'aria-label': `${each.name}: ${each.done} of ${each.items} done`
      });
      return [
        line(
          mark(MARKS[each.state] ?? '·', tone(each.state)),
          h('span', { class: 'mlcloud-name' }, short(each.name, 80)),
          h('span', { class: `mlcloud-state ${tone(each.state)}` }, each.state),
          h('span', { class: 'mlcloud-money' }, usd(each.usd)),
          buttons(
            button('Log', `Show the log of ${each.name}`, () => view.log(of, 'job', each.id), {
              name: 'log'
            }),
            OVER.includes(each.state)
              ? null
              : button('Cancel', `Cancel ${each.name}`, () => void view.actions.cancel(of, each.id), {
                  name: 'cancel',
                  off: busy
                })
          )
        ),
        line(
          OVER.includes(each.state) ? null : bar,
          quiet([
            `${each.done.toLocaleString('en-US')} of ${counted(each.items, 'item')}`,
            each.failed ? `${each.failed} failed` : '',
            each.workers ? counted(each.workers, 'worker') : '',
            Number(each.usd_per_hour) ? rate(each.usd_per_hour) : '',
            short(each.detail)
          ])
        )
      ];
    })
  ];
}
