/** What the panel's tree has in it: the clusters' state as rows. */

import { button, h, short } from '../dom';
import type { Actions } from '../actions';
import type { Clusters, Items } from '../clusters';
import type { Files } from '../files';
import { first, from, most } from '../offered';
import type {
  IBoundary,
  IFile,
  IJob,
  IKnown,
  INode,
  ISavedState,
  ISeries,
  ISession,
  IStep,
  IVariable
} from '../wire';
import { bytes, counted, countdown, rate, since, usd } from '../words';
import { standing } from '../summary';
import type { IRead } from './reading';
import type { IRow } from './tree';

const LINE = 26;
const TWO = 44;
const LETTER = 6.4; // pixels of a note's letter, with what is lost where a line wraps
const INDENTS: Record<number, number> = { 1: 4, 2: 8, 3: 16, 4: 34 }; // as in the style
const MARKS: Record<string, string> = {
  starting: '◌',
  idle: '○',
  busy: '●',
  waiting: '◌',
  moving: '→',
  parked: '‖',
  closed: '×',
  failed: '✕',
  queued: '◌',
  scheduled: '◷',
  running: '●',
  done: '✓',
  cancelled: '×'
};
const OVER = ['done', 'failed', 'cancelled'];
const VARIABLES = 200; // of a session, shown

/** What is saved of a session. */
export interface ISaved {
  state: ISavedState;
  history: IBoundary[];
}

/** What the rows are made from, beside the state. */
export interface IView {
  clusters: Clusters;
  actions: Actions;
  files: Files;
  isOpen(key: string, byDefault: boolean): boolean;
  detail(cluster: string, session: ISession): IRead<ISaved>;
  series(cluster: string): IRead<ISeries[]>;
  steps(cluster: string, series: ISeries): IRead<IStep[]>;
  log(cluster: string, kind: 'session' | 'job', name: string): void;
  now: number;
}

export function rows(view: IView): IRow[] {
  return [
    ...(view.clusters.known ?? []).flatMap(known => cluster(view, known)),
    ...(view.files.found ?? []).flatMap(each => file(view, each))
  ];
}

function cluster(view: IView, known: IKnown): IRow[] {
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

// --- files ------------------------------------------------------------------------------------

function file(view: IView, each: IFile): IRow[] {
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

// --- budgets ----------------------------------------------------------------------------------

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

// --- nodes ------------------------------------------------------------------------------------

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

// --- sessions ---------------------------------------------------------------------------------

function session(view: IView, of: string, each: ISession): IRow[] {
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

// --- jobs -------------------------------------------------------------------------------------

function job(view: IView, of: string, each: IJob): IRow[] {
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

// --- checkpoints ------------------------------------------------------------------------------

/** Those in the cluster's store. Nothing is read while they are not looked at. */
function checkpoints(view: IView, of: string): IRow[] {
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

// --- small ------------------------------------------------------------------------------------

function row(
  kind: string,
  key: string,
  level: number,
  height: IRow['height'],
  facts: () => unknown,
  open: boolean | undefined,
  draw: () => (Node | string)[]
): IRow {
  const made: IRow = {
    kind,
    key,
    level,
    height,
    facts: () => JSON.stringify(facts()) + String(open),
    draw: () => [twisty(open), h('div', { class: 'mlcloud-cell' }, ...draw())]
  };
  return open === undefined ? made : { ...made, open };
}

function note(key: string, level: number, text: string, tone = 'quiet'): IRow {
  const words = short(text);
  const height = (width: number) => {
    const there = Math.max(80, width - 24 - (INDENTS[level] ?? 34));
    return 10 + 16 * Math.min(10, Math.max(1, Math.ceil((words.length * LETTER) / there)));
  };
  return row('note', key, level, height, () => words, undefined, () => [
    h('div', { class: `mlcloud-note ${tone}` }, words)
  ]);
}

/** What is still read, or cannot be. */
function unread(of: string, level: number, found: IRead<unknown>): IRow {
  return found.problem
    ? note(`${of}/problem`, level, found.problem, 'bad')
    : note(`${of}/reading`, level, 'reading …');
}

function line(...parts: (Node | null)[]): HTMLElement {
  return h('div', { class: 'mlcloud-line' }, ...parts);
}

function quiet(parts: (string | false | null | undefined)[]): HTMLElement {
  const text = parts.filter(Boolean).join(' · ');
  return h('div', { class: 'mlcloud-quiet', title: text }, text);
}

function buttons(...all: (Node | null)[]): HTMLElement {
  return h('span', { class: 'mlcloud-buttons' }, ...all);
}

function mark(text: string, tone: string): HTMLElement {
  return h('span', { class: `mlcloud-mark ${tone}`, 'aria-hidden': 'true' }, text);
}

function twisty(open: boolean | undefined): HTMLElement {
  const text = open === undefined ? '' : open ? '▾' : '▸';
  return h('span', { class: 'mlcloud-twisty', 'aria-hidden': 'true' }, text);
}

function tone(state: string): string {
  if (state === 'failed') {
    return 'bad';
  }
  if (['moving', 'starting', 'waiting', 'queued'].includes(state)) {
    return 'warn';
  }
  return ['busy', 'idle', 'running', 'done'].includes(state) ? 'good' : '';
}
