"""The clouds: small classes that launch, list and terminate machines, and say what they can do.

Nothing here imports Ray: a cloud knows machines, the node provider (`cluster/provider.py`) knows
Ray.
"""
