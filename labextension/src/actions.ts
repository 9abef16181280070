/**
 * What is pressed: asked for where it cannot be taken back, sent, and said in words what came of it.
 *
 * The same thing pressed in two windows is asked for twice, and the second answer says so; what is
 * true then comes by the events, to both.
 */

import { Dialog, InputDialog, Notification, showDialog } from '@jupyterlab/apputils';
import type { INotebookTracker } from '@jupyterlab/notebook';
import { Signal } from '@lumino/signaling';

import { short } from './dom';
import { offered } from './offered';
import type { Server } from './server';
import type { IFile } from './wire';

export class Actions {
  constructor(
    private _server: Server,
    private _notebooks: INotebookTracker | null
  ) {}

  /** What is under way changed. */
  readonly changed = new Signal<Actions, void>(this);

  /** Whether this was pressed and is not answered: `park exp`. */
  busy(key: string): boolean {
    return this._busy.has(key);
  }

  up(cluster: string): Promise<void> {
    return this._act(`up ${cluster}`, () =>
      this._server.request('POST', `clusters/${encodeURIComponent(cluster)}/up`)
    );
  }

  /** As a file says. */
  async upAs(file: IFile): Promise<void> {
    const [title, body, act] = offered(file);
    const answer = await showDialog({
      title,
      body,
      buttons: [Dialog.cancelButton(), Dialog.okButton({ label: act })]
    });
    if (answer.button.accept) {
      await this._act(`up ${file.cluster}`, () =>
        this._server.request('POST', 'files', { path: file.path })
      );
    }
  }

  /** What came of a file is read. */
  dismiss(cluster: string): Promise<void> {
    return this._act(`dismiss ${cluster}`, () =>
      this._server.request('POST', `clusters/${encodeURIComponent(cluster)}/dismiss`)
    );
  }

  async down(cluster: string, sessions: number): Promise<void> {
    const sure = await asked(
      `Take ${cluster} down?`,
      'Its nodes are given back and nothing bills any more.' +
        (sessions ? ' Its sessions are saved, and are there when it is up again.' : ''),
      'Take down'
    );
    if (sure) {
      await this._act(`down ${cluster}`, () =>
        this._server.request('POST', `clusters/${encodeURIComponent(cluster)}/down`)
      );
    }
  }

  park(cluster: string, session: string): Promise<void> {
    return this._post(cluster, `park ${session}`, `sessions/${encodeURIComponent(session)}/park`);
  }

  resume(cluster: string, session: string): Promise<void> {
    return this._post(
      cluster,
      `resume ${session}`,
      `sessions/${encodeURIComponent(session)}/resume`
    );
  }

  interrupt(cluster: string, session: string, execution: string): Promise<void> {
    return this._post(
      cluster,
      `interrupt ${session}`,
      `sessions/${encodeURIComponent(session)}/executions/${execution}/interrupt`
    );
  }

  cancel(cluster: string, job: string): Promise<void> {
    return this._post(cluster, `cancel ${job}`, `jobs/${encodeURIComponent(job)}/cancel`);
  }

  async restore(cluster: string, session: string, step: number): Promise<void> {
    const sure = await asked(
      `Put ${session} back to step ${step}?`,
      'Its names get the values that they had then. The present state stays in its history.',
      'Restore'
    );
    if (sure) {
      const path = `sessions/${encodeURIComponent(session)}/restore`;
      await this._post(cluster, `restore ${session}`, path, { step });
    }
  }

  async preempt(cluster: string, node: string): Promise<void> {
    const sure = await asked(
      `Take ${node} away, as its cloud would?`,
      'A drill: the node gets a notice of two minutes, its sessions move, and it is gone.',
      'Preempt'
    );
    if (sure) {
      await this._post(cluster, `preempt ${node}`, `nodes/${encodeURIComponent(node)}/preempt`, {
        notice_s: 120
      });
    }
  }

  async budget(cluster: string, session: string | null, limit: string): Promise<void> {
    const given = await InputDialog.getText({
      title: `Budget of ${session ?? cluster}`,
      label: 'Dollars: 5, 5/h, 50/day or 1000/month. Empty: none.',
      text: limit,
      okLabel: 'Set'
    });
    if (given.button.accept) {
      const text = (given.value ?? '').trim().replace(/^\$/, '');
      await this._act(`budget ${cluster}`, () =>
        this._server.gateway(cluster, 'PUT', 'budgets', { session, limit: text || null })
      );
    }
  }

  /** The session's running or last cell, in a new cell of the notebook that is open. */
  async attach(cluster: string, session: string): Promise<void> {
    const notebook = this._notebooks?.currentWidget;
    if (!notebook) {
      Notification.info('Open a notebook first: the session is attached there.');
      return;
    }
    const { NotebookActions } = await import('@jupyterlab/notebook');
    const target = cluster === 'embedded' ? '' : `mlcloud.connect(${JSON.stringify(cluster)})\n`;
    NotebookActions.insertBelow(notebook.content);
    notebook.content.activeCell?.model.sharedModel.setSource(
      `import mlcloud\n${target}%load_ext mlcloud\n%mlcloud attach ${session}`
    );
    await NotebookActions.run(notebook.content, notebook.sessionContext);
  }

  private _post(cluster: string, key: string, path: string, body?: unknown): Promise<void> {
    return this._act(key, () => this._server.gateway(cluster, 'POST', path, body));
  }

  private async _act(key: string, act: () => Promise<unknown>): Promise<void> {
    if (this._busy.has(key)) {
      return;
    }
    this._busy.add(key);
    this.changed.emit();
    try {
      await act();
    } catch (error) {
      Notification.error(`mlcloud: ${key}: ${short((error as Error).message)}`, {
        autoClose: 10_000
      });
    } finally {
      this._busy.delete(key);
      this.changed.emit();
    }
  }

  private _busy = new Set<string>();
}

async function asked(title: string, body: string, act: string): Promise<boolean> {
  const answer = await showDialog({
    title,
    body,
    buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: act })],
    defaultButton: 0
  });
  return answer.button.accept;
}
