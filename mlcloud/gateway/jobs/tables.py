"""The tables of jobs, in the gateway's database.

A row of `job_inputs` is a batch as it was sent, one of `job_results` a batch as a worker told it:
100,000 items are a few hundred rows. `number` counts the rows of a job.
"""

from __future__ import annotations

from sqlalchemy import Column, Integer, LargeBinary, String, Table, Text

from mlcloud.gateway import db

jobs = Table(
    "jobs",
    db.metadata,
    Column("id", String, primary_key=True),
    Column("request", Text, nullable=False),
    Column("code", LargeBinary, nullable=False),
    Column("state", String, nullable=False),
    Column("detail", Text, nullable=False, server_default=""),
    Column("complete", Integer, nullable=False, server_default="0"),
    Column("created_at", db.UTC, nullable=False),
    Column("started_at", db.UTC),
    Column("finished_at", db.UTC),
    Column("next_run", db.UTC),
    Column("places", Text, nullable=False, server_default="[]"),
    Column("remembered", Text, nullable=False, server_default="{}"),
    # How far it is in the store: rows of inputs and of results, the manifest's step.
    Column("kept_inputs", Integer, nullable=False, server_default="0"),
    Column("kept_results", Integer, nullable=False, server_default="0"),
    Column("kept_step", Integer, nullable=False, server_default="0"),
)

inputs = Table(
    "job_inputs",
    db.metadata,
    Column("job_id", String, primary_key=True),
    Column("first", Integer, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("wires", LargeBinary, nullable=False),
    Column("needs", Text, nullable=False, server_default="{}"),
)

results = Table(
    "job_results",
    db.metadata,
    Column("job_id", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("ends", LargeBinary, nullable=False),  # msgpack: [item, kind, part or attempts]
    Column("entries", LargeBinary, nullable=False),
    Column("logs", LargeBinary, nullable=False),
)

# Which actors there are, for a gateway that comes back.
workers = Table(
    "job_workers",
    db.metadata,
    Column("name", String, primary_key=True),
    Column("crew", Text, nullable=False),
    Column("job_id", String, nullable=False, server_default=""),
)
