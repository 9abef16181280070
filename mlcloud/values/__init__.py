"""What a session's names hold, as bytes that can travel: shared by the notebook and the kernel.

    value ── pickling.dump ──► payload + buffers ── messages ──► wire ──► pickling.load ──► value

`reducers` says how a notebook's functions, classes, arrays and tensors are taken apart and built up
again. `pickling` runs pickle with them. `scan` pickles many names of one namespace, finds which of
them share objects (`groups`) and packs those together. `messages` are the two envelopes,
`Shipment` (there) and `Return` (back). `userdata` knows which names are the user's, and which look
like secrets; `preview` describes a value that stays where it is.

Nothing here knows the notebook, the gateway or Ray, so both ends import it.
"""
