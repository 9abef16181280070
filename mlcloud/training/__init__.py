"""Training on as many ranks as there are: the same batches, whatever their number.

mlcloud.train(fn, workers=(1, 8)) ─► a gang runs `run.run` ─► fn(context) on every rank
    context.batches(…) ─ order ─► each step's global batch, split among the ranks
                       ─ agreement ─► the same step on all ranks: save? leave?
                       ─ keeping ─► the store, whole or in shards
    a notice, or more nodes ─► saved, and the gateway makes a gang of another size
"""
