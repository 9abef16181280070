"""The elastic Ray cluster: offers, clouds, Ray's node provider, the agent on every node.

offers ─► shapes (node types) ─► raycluster (Ray's config) ─► Ray's autoscaler
                                                                  │ asks for a node type
clouds/local ◄── launch the cheapest offer ── provider ◄──────────┘
    └─► agent on the new node ─► ray start, notices, heartbeats, dead-man switch
"""
