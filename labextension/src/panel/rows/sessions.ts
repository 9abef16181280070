/** A session: its state and price; opened, its variables and snapshots, which are read then. */

import { button, h, short } from '../../dom';
import { bytes, counted, rate, since, usd } from '../../words';
import type { IBoundary, ISession, IVariable } from '../../wire';
import type { IRow } from '../tree';
import { buttons, LINE, line, mark, MARKS, note, quiet, row, tone, TWO, unread } from './pieces';
import type { IView } from './view';

const VARIABLES = 200; // of a session, shown

export function session(view: IView, of: string, each: ISession): IRow[] {
  const key = `cluster/${of}/session/${each.name}`;
  const open = view.isOpen(key, false);
  const { actions } = view;
  const idle = () =>
    each.state === 'idle' && each.idle_since ? since(each.idle_since, view.now) : '';
  const under = (what: string) => actions.busy(`${what} ${each.name}`);
  const facts = () => {
    // Which changes every moment, and is not shown.
    const { last_event: _, ...shown } = each;
    return [shown, idle(), under('park'), under('resume'), under('interrupt')];
  };
  const made = row('session', key, 3, TWO, facts, open, () => {
    const doing = under('park') ? 'parking' : under('resume') ? 'resuming' : each.state;
    const rented = Number(each.usd_per_hour);
    return [
      line(
        mark(MARKS[each.state] ?? '·', tone(each.state)),
        h('span', { class: 'mlcloud-name' }, each.name),
        h(
          'span',
          { class: `mlcloud-state ${tone(each.state)}` },
          doing + (each.queued ? ` +${each.queued}` : '')
        ),
        h('span', { class: 'mlcloud-money' }, rented ? rate(each.usd_per_hour) : usd(each.usd)),
        buttons(
          each.running
            ? button(
                'Interrupt',
                `Interrupt ${each.name}`,
                () => void actions.interrupt(of, each.name, each.running!),
                { name: 'interrupt', off: under('interrupt') }
              )
            : null,
          each.state === 'parked'
            ? button('Resume', `Resume ${each.name}`, () => void actions.resume(of, each.name), {
                name: 'park',
                off: under('resume')
              })
            : ['idle', 'busy', 'waiting'].includes(each.state) && !each.running
              ? button('Park', `Park ${each.name}`, () => void actions.park(of, each.name), {
                  name: 'park',
                  off: under('park')
                })
              : null,
          button('Attach', `Attach ${each.name} in the notebook`, () => {
            void actions.attach(of, each.name);
          }, { name: 'attach' })
        )
      ),
      quiet([
        each.instance_type
          ? `${each.instance_type} ${each.zone ?? ''}`.trim()
          : [each.gpu, `${each.cpus} CPU`].filter(Boolean).join(' · '),
        idle() && `idle ${idle()}`,
        `${usd(each.usd)} so far`,
        `${each.safe_cells} of ${counted(each.finished_cells, 'cell')} safe`,
        short(each.detail)
      ])
    ];
  });
  return open ? [made, ...detail(view, of, key, each)] : [made];
}

function detail(view: IView, of: string, key: string, each: ISession): IRow[] {
  const found = view.detail(of, each);
  const head = row('detail', `${key}/log`, 4, LINE, () => '', undefined, () => [
    line(
      h('span', { class: 'mlcloud-quiet' }, 'what its last cell printed'),
      buttons(
        button('Log', `Show the log of ${each.name}`, () => view.log(of, 'session', each.name), {
          name: 'log'
        })
      )
    )
  ]);
  if (found.problem || !found.value) {
    return [head, unread(key, 4, found)];
  }
  const { state, history } = found.value;
  const { variables } = state;
  const all = variables.reduce((sum, one) => sum + (one.bytes ?? 0), 0);
  return [
    head,
    note(
      `${key}/sum`,
      4,
      `${counted(variables.length, 'variable')}, ${bytes(state.bytes || all)} saved` +
        (state.files ? `, with ${counted(state.files, 'file')}` : '')
    ),
    ...variables.slice(0, VARIABLES).map(one => variable(key, one)),
    ...(variables.length > VARIABLES
      ? [note(`${key}/more`, 4, `and ${variables.length - VARIABLES} more: %mlcloud state`)]
      : []),
    ...history
      .slice(-10)
      .reverse()
      .map(one => boundary(view, of, key, each, one))
  ];
}

function variable(key: string, each: IVariable): IRow {
  return row('detail', `${key}/variable/${each.name}`, 4, LINE, () => each, undefined, () => [
    line(
      h('code', {}, short(each.name, 60)),
      h('span', { class: `mlcloud-quiet ${each.how === 'lost' ? 'bad' : ''}` }, each.how),
      h('span', { class: 'mlcloud-money' }, each.bytes === null ? '' : bytes(each.bytes))
    )
  ]);
}

function boundary(view: IView, of: string, key: string, session: ISession, each: IBoundary): IRow {
  const code = each.code.trim().split('\n')[0] ?? '';
  const busy = view.actions.busy(`restore ${session.name}`);
  return row('detail', `${key}/step/${each.step}`, 4, LINE, () => [each, busy], undefined, () => [
    line(
      h('span', {}, `snapshot ${each.step}`),
      h(
        'code',
        { class: 'mlcloud-quiet' },
        each.restored_from === null ? short(code, 80) : `as at ${each.restored_from}`
      ),
      h('span', { class: 'mlcloud-money' }, bytes(each.bytes)),
      buttons(
        button(
          'Restore',
          `Put ${session.name} back to snapshot ${each.step}, asks first`,
          () => void view.actions.restore(of, session.name, each.step),
          { name: 'restore', off: busy }
        )
      )
    )
  ]);
}
