"""The gateway: one authenticated port in front of a cluster, and the only code that drives Ray.

app (routes, WebSocket) ─► sessions (state machine) ─► hosts (Ray actors) ─► kernel
                               │        ▲
                          journal      embedded (nodes, notices)
                               └─ db (SQLite) ; store (snapshots)
"""
