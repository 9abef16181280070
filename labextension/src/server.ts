/**
 * Requests to the server's part (`mlcloud/labserver`). It adds the gateway's token: the page never
 * has it. The Jupyter server's own authentication and XSRF protection hold as everywhere.
 */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

/** An answer that says no: `code` is a class of `mlcloud.errors`. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string
  ) {
    super(message);
    this.name = code;
  }
}

export class Server {
  constructor(readonly settings: ServerConnection.ISettings = ServerConnection.makeSettings()) {}

  /** `path` below `…/mlcloud/`. Rejects with `Refused`. */
  async request<T>(method: string, path: string, body?: unknown): Promise<T> {
    const url = URLExt.join(this.settings.baseUrl, 'mlcloud', path);
    const init: RequestInit = { method };
    if (body !== undefined) {
      init.body = JSON.stringify(body);
      init.headers = { 'Content-Type': 'application/json' };
    }
    let response: Response;
    try {
      response = await ServerConnection.makeRequest(url, init, this.settings);
    } catch (error) {
      throw new Refused(0, 'ConnectionFailed', `the Jupyter server does not answer (${error})`);
    }
    const text = await response.text();
    const told = parsed(text);
    if (!response.ok) {
      const { code, message } = (told ?? {}) as { code?: string; message?: string };
      throw new Refused(
        response.status,
        code ?? 'MLCloudError',
        message ?? `the server answered ${response.status} to ${method} ${path}`
      );
    }
    return told as T;
  }

  /** A route of a cluster's gateway: `gateway('embedded', 'GET', 'sessions/exp/state')`. */
  gateway<T>(cluster: string, method: string, path: string, body?: unknown): Promise<T> {
    return this.request<T>(method, `clusters/${encodeURIComponent(cluster)}/v1/${path}`, body);
  }

  /** A WebSocket below `…/mlcloud/`. */
  socket(path: string): WebSocket {
    const { wsUrl, appendToken, token, WebSocket: Socket } = this.settings;
    const url = URLExt.join(wsUrl, 'mlcloud', path);
    const query = appendToken && token ? `?token=${encodeURIComponent(token)}` : '';
    return new Socket(url + query);
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
