/**
 * Outputs of remote cells, made again from the journal: after the page was loaded again those of
 * cells whose end it has not seen, live ones going on; on command, those of all.
 *
 *   GET mlcloud/outputs/<session>/<execution> ─► a message a line ─► the cell's outputs
 */

import type { CodeCell } from '@jupyterlab/cells';
import { URLExt } from '@jupyterlab/coreutils';
import type { IOutput } from '@jupyterlab/nbformat';
import { NotebookActions } from '@jupyterlab/notebook';
import type { NotebookPanel } from '@jupyterlab/notebook';
import { ServerConnection } from '@jupyterlab/services';

import { factsOf, keep, Running } from './facts';
import type { IFacts } from './facts';

const TRIES = 5;
const PAUSE_MS = 1000;

interface IMessage {
  msg_type: string;
  content: Record<string, unknown>;
}

/** What is being made again in one notebook. */
export class Rebuilding {
  constructor(
    private readonly _panel: NotebookPanel,
    private readonly _settings: ServerConnection.ISettings
  ) {
    NotebookActions.executionScheduled.connect(this._onScheduled, this);
    _panel.disposed.connect(() => {
      NotebookActions.executionScheduled.disconnect(this._onScheduled, this);
      this._running.forEach(each => each.abort());
    });
  }

  /** Those whose end was not seen. */
  start(): void {
    const running = new Running(this._panel.context.path).all;
    for (const cell of this._codeCells()) {
      const told = factsOf(cell.model);
      const facts = running[cell.model.id] ?? (told?.state === 'running' ? told : null);
      if (facts && !cell.outputArea.future) {
        void this.rebuild(cell, facts);
      }
    }
  }

  /** All that ran remotely, whatever is shown now. */
  async all(): Promise<number> {
    const found = this._codeCells().filter(cell => factsOf(cell.model));
    const done = await Promise.all(
      found.map(cell => this.rebuild(cell, factsOf(cell.model) as IFacts))
    );
    return done.filter(each => each).length;
  }

  /** Whether it could be. */
  async rebuild(cell: CodeCell, facts: IFacts): Promise<boolean> {
    const id = cell.model.id;
    this._running.get(id)?.abort();
    const abort = new AbortController();
    this._running.set(id, abort);
    for (let tries = 1; ; tries++) {
      const outcome = await this._try(cell, facts, abort.signal);
      if (abort.signal.aborted || outcome !== 'lost' || tries === TRIES) {
        if (this._running.get(id) === abort) {
          this._running.delete(id);
          cell.model.executionState = 'idle';
          if (outcome === 'unknown') {
            new Running(this._panel.context.path).end(id);
          }
        }
        return outcome === 'done';
      }
      await new Promise(done => setTimeout(done, PAUSE_MS * tries));
    }
  }

  private async _try(
    cell: CodeCell,
    facts: IFacts,
    signal: AbortSignal
  ): Promise<'done' | 'lost' | 'unknown'> {
    const path = ['mlcloud', 'outputs', facts.session, facts.execution_id].map(encodeURIComponent);
    const query = facts.cluster ? URLExt.objectToQueryString({ cluster: facts.cluster }) : '';
    const url = URLExt.join(this._settings.baseUrl, ...path) + query;
    try {
      const init: RequestInit = { signal, cache: 'no-store' };
      const response = await ServerConnection.makeRequest(url, init, this._settings);
      if (!response.ok || !response.body) {
        return response.status === 404 ? 'unknown' : 'lost';
      }
      if (facts.state === 'running') {
        keep(cell.model, facts);
      }
      const shown = new Shown(cell);
      for await (const message of lines(response.body)) {
        if (signal.aborted) {
          return 'lost';
        }
        if (message.msg_type === 'mlcloud_end') {
          this._end(cell, message.content);
          return 'done';
        }
        shown.add(message);
      }
    } catch (error) {
      if (!signal.aborted) {
        console.warn('mlcloud: outputs could not be read', error);
      }
    }
    return 'lost';
  }

  private _end(cell: CodeCell, end: Record<string, unknown>): void {
    keep(cell.model, end as unknown as IFacts);
    new Running(this._panel.context.path).end(cell.model.id);
    if (typeof end['execution_count'] === 'number') {
      cell.model.executionCount = end['execution_count'];
    }
  }

  /** The cell runs again: what it showed before is of no interest any more. */
  private _onScheduled(_: unknown, args: { cell: { model: { id: string } } }): void {
    this._running.get(args.cell.model.id)?.abort();
  }

  private _codeCells(): CodeCell[] {
    return this._panel.content.widgets.filter(
      (cell): cell is CodeCell => cell.model.type === 'code'
    );
  }

  private readonly _running = new Map<string, AbortController>();
}

/** A cell's outputs as messages make them; begins with none. */
class Shown {
  constructor(private readonly _cell: CodeCell) {}

  add(message: IMessage): void {
    if (!this._begun) {
      this._begun = true;
      this._cell.model.outputs.clear();
      this._cell.model.executionState = 'running';
    }
    const outputs = this._cell.model.outputs;
    const { transient, ...content } = message.content;
    const display = (transient as { display_id?: string } | undefined)?.display_id;
    switch (message.msg_type) {
      case 'clear_output':
        outputs.clear(Boolean(content['wait']));
        this._places.clear();
        break;
      case 'update_display_data':
        for (const place of (display && this._places.get(display)) || []) {
          outputs.set(place, { ...content, output_type: 'display_data' } as IOutput);
        }
        break;
      default:
        outputs.add({ ...content, output_type: message.msg_type } as IOutput);
        if (display) {
          const before = this._places.get(display) ?? [];
          this._places.set(display, [...before, outputs.length - 1]);
        }
    }
  }

  private _begun = false;
  private readonly _places = new Map<string, number[]>();
}

async function* lines(body: ReadableStream<Uint8Array>): AsyncGenerator<IMessage> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      const found = rest.split('\n');
      rest = found.pop() ?? '';
      for (const line of found) {
        yield JSON.parse(line) as IMessage;
      }
      if (done) {
        return;
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
