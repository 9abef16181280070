"""Not the package of this name: see `mlcloud.cluster.lean`."""

raise ImportError("left out of Ray's own processes: its import takes seconds, and none needs it")
