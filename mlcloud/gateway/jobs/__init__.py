"""Jobs: functions called for items by worker processes, whoever watches or not.

    client ─ POST items ─► Job, its Items ─► Crews: workers by shape ─ Ray ─► worker
    client ◄─ results by cursor ─ table ◄─ commit ◄─ events ◄───────────────────┘
                                    └─► store (`keeping`): signed manifests, every second or so

An item is committed when its result is in the table, in one transaction with what it printed: from
then on it is never run again. What a killed gateway had not read is still with its worker. What of
jobs there is in the store brings them back on another head, and is what `rerun` starts from.
"""
