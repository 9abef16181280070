"""A whole notebook in a session: a Jupyter kernel whose cells run there.

    front end ══ ZMQ ══ sockets ─ kernel ─┬─ cells, widgets
    (JupyterLab, nbclient, a console)     └─ remote ══ HTTP/WS ══ gateway ══ the session's ipykernel

A kernelspec (`specs`) starts this process, by `provisioner` where the front end's own server asks
jupyter_client to, else by its command line, which says everything (`options`). No names travel
between two namespaces as for `%%remote`: the notebook's only namespace is the session's.

An `execute_request` is an execution of the gateway's, under the request's own id. So it goes on
when this process ends, moves with its session, and is in the journal; the requests that wait behind
it are with the gateway too. Its bill is the metadata of its reply, and of the `idle` after it.
"""
