"""The client: the library in the notebook's kernel, a thin one. No Ray, no torch, no gateway code.

api (connect, session, …) ─► connection (HTTP) ─► session (WebSocket, names, display)
                                   └────────────► cluster (status, drills, down)
"""
