/** A cluster: its state and price, its budgets and nodes, and the groups of what it has. */

import { button, h, short } from '../../dom';
import { standing } from '../../summary';
import { bytes, countdown, rate, usd } from '../../words';
import type { Items } from '../../clusters';
import type { IKnown, INode } from '../../wire';
import type { IRow } from '../tree';
import { checkpoints } from './checkpoints';
import { job } from './jobs';
import { buttons, LINE, line, mark, note, quiet, row, TWO } from './pieces';
import { session } from './sessions';
import type { IView } from './view';

export function cluster(view: IView, known: IKnown): IRow[] {
  const items = view.clusters.items.get(known.name);
  const key = `cluster/${known.name}`;
  const open = view.isOpen(key, true);
  const info = (known.up && items?.info) || null;
  const busy = view.actions.busy(`up ${known.name}`) || view.actions.busy(`down ${known.name}`);
  const state = known.doing || (info ? info.state : known.problem ? 'not reached' : 'not up');
  const found: IRow[] = [
    row('cluster', key, 1, TWO, () => ({ known, info, busy }), open, () => [
      line(
        h('span', { class: 'mlcloud-name' }, known.name),
        h('span', { class: 'mlcloud-money' }, info ? rate(info.usd_per_hour) : ''),
        buttons(
          info && !known.doing
            ? button('Down', `Take ${known.name} down, asks first`, () => {
                void view.actions.down(known.name, items?.sessions.size ?? 0);
              }, { name: 'act', off: busy })
            : known.kind === 'file'
              ? button(
                  'Dismiss',
                  `Dismiss what came of ${known.name}`,
                  () => void view.actions.dismiss(known.name),
                  { name: 'act', off: busy || known.doing !== '' }
                )
            : known.kind !== 'url'
              ? button('Up', `Bring ${known.name} up`, () => void view.actions.up(known.name), {
                  name: 'act',
                  off: busy || known.doing !== ''
                })
              : null
        )
      ),
      quiet(
        [
          info && !known.doing ? `${state} on ${info.cloud}` : state,
          info?.simulated && 'simulated prices',
          info && `${usd(info.usd_today)} today`,
          info && Number(info.standing_usd_per_hour)
            ? `${rate(info.standing_usd_per_hour)} also while parked`
            : ''
        ]
      )
    ])
  ];
  if (!open) {
    return found;
  }
  const told = known.problem || info?.detail;
  if (told && !known.doing) {
    found.push(note(`${key}/problem`, 2, told, known.problem ? 'bad' : 'quiet'));
  }
  if (!info || !items) {
    if (!known.doing && !known.problem) {
      found.push(
        note(`${key}/none`, 2, 'Nothing bills. A %%remote cell starts it, or the button Up.')
      );
    }
    return found;
  }
  found.push(...budgets(view, known.name, items));
  const nodes = [...items.nodes.values()];
  found.push(
    ...group(view, key, 'Nodes', nodes, 'No node is rented: a cell brings one.', each =>
      node(view, known.name, each)
    )
  );
  const sessions = [...items.sessions.values()];
  found.push(
    ...group(view, key, 'Sessions', sessions, 'No session yet: run a %%remote cell.', each =>
      session(view, known.name, each)
    )
  );
  if (items.jobs) {
    const jobs = [...items.jobs.values()];
    found.push(
      ...group(view, key, 'Jobs', jobs, 'No job yet: .submit() or .map() a function.', each =>
        job(view, known.name, each)
      )
    );
  }
  found.push(...checkpoints(view, known.name));
  return found;
}

function group<T>(
  view: IView,
  of: string,
  title: string,
  all: T[],
  none: string,
  each: (item: T) => IRow[]
): IRow[] {
  const key = `${of}/${title}`;
  const open = view.isOpen(key, true);
  const head = row('group', key, 2, LINE, () => all.length, open, () => [
    line(
      h('span', { class: 'mlcloud-title' }, title),
      h('span', { class: 'mlcloud-count' }, all.length.toLocaleString('en-US'))
    )
  ]);
  if (!open) {
    return [head];
  }
  return [head, ...(all.length ? all.flatMap(each) : [note(`${key}/none`, 3, none)])];
}

function budgets(view: IView, of: string, items: Items): IRow[] {
  const all = [...items.budgets];
  const key = `cluster/${of}/budget`;
  const set = (session: string | null, limit: string) =>
    button(
      limit ? 'Change' : 'Set',
      `${limit ? 'Change' : 'Set'} the budget of ${session ?? of}`,
      () => void view.actions.budget(of, session, limit),
      { name: 'budget' }
    );
  const found = all.map(([name, each]) =>
    row('budget', `${key}/${name}`, 2, TWO, () => each, undefined, () => {
      const whose = each.session ?? each.user ?? each.job ?? null;
      const part = Math.min(1, Number(each.spent_usd) / Number(each.limit_usd));
      const bar = h('div', {
        class: `mlcloud-bar ${standing(each)}`,
        role: 'meter',
        'aria-label': `Spent of the budget of ${whose ?? of}`,
        'aria-valuemin': 0,
        'aria-valuemax': 100,
        'aria-valuenow': Math.round(100 * part)
      });
      const full = h('div');
      full.style.width = `${100 * part}%`;
      bar.append(full);
      return [
        line(
          h('span', {}, `budget${whose ? ` of ${whose}` : ''}`),
          h(
            'span',
            { class: `mlcloud-money ${standing(each)}` },
            `${usd(each.spent_usd)} of $${each.limit}`
          ),
          // A user's or a job's is set where it was: in a cell or a shell.
          whose === each.session ? buttons(set(each.session, each.limit)) : null
        ),
        each.refuses ? h('div', { class: 'mlcloud-quiet bad' }, short(each.refuses)) : bar
      ];
    })
  );
  if (!items.budgets.has('')) {
    found.unshift(
      row('budget', `${key}/none`, 2, LINE, () => '', undefined, () => [
        line(h('span', { class: 'mlcloud-quiet' }, 'no budget'), buttons(set(null, '')))
      ])
    );
  }
  return found;
}

function node(view: IView, of: string, each: INode): IRow[] {
  const key = `cluster/${of}/node/${each.id}`;
  const leaving = each.notice_deadline;
  const left = () => (leaving ? countdown(leaving, view.now) : '');
  const busy = () => view.actions.busy(`preempt ${each.id}`);
  const use = each.use;
  const uses = [...each.sessions, ...(each.jobs ?? [])];
  return [
    row('node', key, 3, TWO, () => [each, left(), busy()], undefined, () => [
      line(
        mark(leaving ? '!' : '▪', leaving ? 'bad' : ''),
        h('span', { class: 'mlcloud-name' }, each.instance_type),
        leaving
          ? h('span', { class: 'mlcloud-badge bad' }, `goes in ${left()}`)
          : h('span', { class: 'mlcloud-quiet' }, each.market),
        h('span', { class: 'mlcloud-money' }, rate(each.usd_per_hour)),
        buttons(
          button(
            'Preempt',
            `Take the node ${each.id} away, a drill, asks first`,
            () => void view.actions.preempt(of, each.id),
            { name: 'preempt', off: busy() || leaving !== null }
          )
        )
      ),
      quiet([
        each.zone,
        uses.length ? `for ${uses.join(', ')}` : 'not used',
        use && `${use.cpus.toFixed(1)} of ${each.cpus} CPUs busy`,
        use && `memory ${bytes(use.memory)} of ${bytes(each.memory_bytes ?? 0)}`,
        ...(use?.gpus ?? []).map(
          gpu => `GPU ${Math.round(100 * gpu.busy)} %, ${bytes(gpu.memory)} of ${bytes(gpu.memory_there)}`
        ),
        `${Math.round(100 * each.reserved)} % reserved`,
        leaving && 'its sessions move'
      ])
    ])
  ];
}
