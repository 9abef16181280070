/**
 * What the kernel says of remote executions, kept in their cells.
 *
 *   status {metadata.mlcloud}      begins, ends (unseen; `mlcloud/client/frontend.py`, `tell`)
 *   display_data, update_… {…}     the footer, also of a cell that ran in the background
 */

import type { CodeCell } from '@jupyterlab/cells';
import type { ISessionContext } from '@jupyterlab/apputils';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { KernelMessage } from '@jupyterlab/services';

import { factsIn, factsOf, keep, Running } from './facts';

const REMEMBERED = 1000;

export class Following {
  constructor(private readonly _panel: NotebookPanel) {
    _panel.sessionContext.iopubMessage.connect(this._onMessage, this);
    _panel.disposed.connect(() => {
      _panel.sessionContext.iopubMessage.disconnect(this._onMessage, this);
    });
  }

  private _onMessage(_: ISessionContext, message: KernelMessage.IMessage): void {
    const kind = message.header.msg_type;
    const told =
      kind === 'status'
        ? message.metadata
        : kind === 'display_data' || kind === 'update_display_data'
          ? (message.content as { metadata?: unknown }).metadata
          : undefined;
    const facts = factsIn(told);
    if (!facts) {
      return;
    }
    const cell = this._cellOf(message.parent_header as { msg_id?: string }, facts.execution_id);
    if (!cell) {
      return;
    }
    keep(cell.model, facts);
    const running = new Running(this._panel.context.path);
    if (facts.state === 'running') {
      running.begin(cell.model.id, facts);
    } else {
      running.end(cell.model.id);
    }
  }

  /** The cell whose request this is, or which had this execution last. */
  private _cellOf(parent: { msg_id?: string }, executionId: string): CodeCell | null {
    const request = parent.msg_id ?? '';
    const known = this._cells.get(request);
    for (const cell of this._panel.content.widgets) {
      if (cell.model.type !== 'code') {
        continue;
      }
      const code = cell as CodeCell;
      const sent = code.outputArea.future?.msg.header.msg_id;
      if (sent === request || known === cell.model.id) {
        this._remember(request, cell.model.id);
        return code;
      }
      if (!sent && factsOf(cell.model)?.execution_id === executionId) {
        return code;
      }
    }
    return null;
  }

  private _remember(request: string, cellId: string): void {
    this._cells.set(request, cellId);
    if (this._cells.size > REMEMBERED) {
      this._cells.delete(this._cells.keys().next().value as string);
    }
  }

  private readonly _cells = new Map<string, string>();
}
