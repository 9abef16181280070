"""Configuration: every setting, its environment variable `MLCLOUD_<NAME>`, and its default.

Both sides read it: the client to find the gateway, the gateway to run the embedded cluster. Paths
that other processes must agree on are derived here and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mlcloud.errors import ConnectionFailed, UsageError
from mlcloud.units import parse_duration

ALREADY_RUNNING = 3  # the gateway's exit code where another holds this home's lock


class Settings(BaseSettings):
    """One embedded cluster lives under one `home`; another home is another cluster."""

    model_config = SettingsConfigDict(env_prefix="MLCLOUD_", extra="ignore")

    home: Path = Field(
        default_factory=lambda: Path.home() / ".mlcloud",
        description="Where the embedded cluster keeps its state, journal and default store.",
    )
    store: str | None = Field(
        None,
        description="Store URL (`s3://…`, `gs://…`, `az://…`, `file://…`); default: under home.",
    )
    store_key: Path | None = Field(
        None,
        description="The file of the key that signs what is in the store; default: under home, and "
        "for a store of its own in ~/.config/mlcloud/keys. Whoever shall read a store needs it.",
    )
    url: str | None = Field(None, description="A gateway to use instead of the embedded one.")
    token: str | None = Field(None, description="The token for `url`.", repr=False)
    fingerprint: str | None = Field(
        None, description="The SHA-256 of the certificate of `url`, 64 hexadecimal digits."
    )
    port: int = Field(
        0, ge=0, le=65535, description="The gateway's loopback port; 0: any free one."
    )
    start_timeout: timedelta = Field(
        timedelta(seconds=60), description="How long `connect()` waits for the gateway to answer."
    )
    idle_end: timedelta = Field(
        timedelta(minutes=30),
        description="The embedded cluster ends itself after this long without use.",
    )
    idle_timeout: timedelta = Field(
        timedelta(minutes=15), description="A session is parked after this long without a cell."
    )
    input_timeout: timedelta = Field(
        timedelta(minutes=10),
        description="An `input()` that nobody is there to answer ends as EOFError after this long.",
    )
    node_idle: timedelta = Field(
        timedelta(minutes=1), description="A node without a session is given back after this long."
    )
    offer_cooldown: timedelta = Field(
        timedelta(minutes=5),
        description="An offer whose spot node was taken back is passed over for this long.",
    )
    spot_return: timedelta = Field(
        timedelta(minutes=10),
        description="A session that asked for spot and was put on an on-demand node, for want of "
        "spot, looks for a spot node again after this long, and goes on looking. `0s`: never.",
    )
    dead_man: timedelta = Field(
        timedelta(minutes=3),
        description="A node whose gateway has not answered for this long ends itself.",
    )
    notice_poll: timedelta = Field(
        timedelta(seconds=1), description="How often a node looks for a preemption notice."
    )
    metadata: Literal["aws", "gcp", "azure"] = Field(
        "aws",
        description="Whose metadata service the embedded cluster's nodes have, and watch: a drill "
        "is told to them as this cloud would.",
    )
    node_lifetime: timedelta = Field(
        timedelta(days=7),
        description="A node that is so old ends, and its sessions move. `0s`: none does.",
    )
    least_billed: timedelta = Field(
        timedelta(0),
        description="What a node of the embedded cluster is billed at least, as AWS and Google "
        "bill a minute and Azure five of each launch.",
    )
    price_refresh: timedelta = Field(
        timedelta(minutes=10),
        description="How often the cloud is asked what running nodes cost now; Azure once an hour "
        "at most, Google every six. `0s`: never.",
    )
    price_moves: timedelta = Field(
        timedelta(0),
        description="How often the embedded cluster's simulated spot prices move; `0s`: never.",
    )
    max_nodes: int = Field(
        4, ge=1, le=64, description="Nodes the embedded cluster may have at once."
    )
    warm_spares: int = Field(
        0,
        ge=0,
        le=8,
        description="Nodes of the smallest shape that are kept, used or not; they bill.",
    )

    environment_check: Literal["error", "warn", "off"] = Field(
        "error",
        description="When this notebook's packages and a session's differ in a way that matters: "
        "refuse, only warn, or do not look.",
    )
    output_burst: ByteSize = Field(
        ByteSize(10_000_000),
        description="Text that a cell may print at once and see all of, e.g. `10MB`.",
    )
    output_rate: ByteSize = Field(
        ByteSize(32_000), description="Text a second that a cell may print beyond that."
    )
    output_shown: ByteSize = Field(
        ByteSize(64_000_000),
        description="Text of one cell that the notebook shows in all; more is in its log.",
    )
    output_log: ByteSize = Field(
        ByteSize(1_000_000_000),
        description="Length of the log that the store keeps of a cell which printed too much.",
    )

    snapshot_memory: ByteSize | None = Field(
        None,
        description="Memory for copies of a state that is still being saved when the next cell "
        "begins; what is more is waited for. Default: a tenth of the node's or the session's.",
    )

    snapshot_max: ByteSize | None = Field(
        None,
        description="Bytes that a session's saved state may have, e.g. `50GB`. What would lead "
        "beyond is made again by its cells after a move, or named as what a move would lose.",
    )

    snapshot_overhead: float = Field(
        0.05,
        ge=0,
        description="Share of its cells' run time for which a session may make them wait while it "
        "saves their state. Cells that follow each other faster are saved together, or when "
        "nothing runs. 1: save after each cell.",
    )

    prune_every: timedelta = Field(
        timedelta(hours=1),
        description="How often the gateway removes from its store what no session can come back to "
        "and nobody names. `0s`: never.",
    )
    prune_grace: timedelta = Field(
        timedelta(days=1),
        description="How long nobody must have named or written a chunk before it is marked, and "
        "again before it is removed.",
    )
    closed_keep: timedelta = Field(
        timedelta(days=1),
        description="How long the states, logs and loops' checkpoints of a closed session stay in "
        "the store.",
    )
    jobs_keep: timedelta = Field(
        timedelta(0),
        description="Jobs that ended so long ago are removed, with their results, logs and "
        "checkpoints. `0s`: none is, so that each can be run again years later.",
    )
    schedule_keep: int = Field(
        100, ge=1, description="Runs of a schedule that stay: so many of the newest."
    )
    history_keep: int = Field(
        50,
        ge=1,
        description="States of an open session that stay: so many of the newest; of older ones the "
        "last of each hour for a day, and the last of each day.",
    )

    def __init__(self, **values: Any) -> None:
        """Raises `UsageError`, naming the variable, where a setting cannot be understood."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = "; ".join(
                f"MLCLOUD_{str(each['loc'][0]).upper()}={each['input']!r}: {each['msg']}"
                for each in error.errors()
            )
            raise UsageError(f"a setting cannot be understood: {problems}") from None

    @field_validator(
        "start_timeout",
        "idle_end",
        "idle_timeout",
        "input_timeout",
        "node_idle",
        "offer_cooldown",
        "spot_return",
        "dead_man",
        "notice_poll",
        "node_lifetime",
        "least_billed",
        "price_refresh",
        "price_moves",
        "prune_every",
        "prune_grace",
        "closed_keep",
        "jobs_keep",
        mode="before",
    )
    @classmethod
    def _duration(cls, value: object) -> object:
        return parse_duration(value) if isinstance(value, str) else value

    @property
    def snapshot_limits(self) -> dict[str, float]:
        """As the kernel takes them; 0: its own default."""
        return {
            "snapshot_memory": self.snapshot_memory or 0,
            "snapshot_max": self.snapshot_max or 0,
            "snapshot_overhead": self.snapshot_overhead,
        }

    @property
    def output_limits(self) -> dict[str, int]:
        """What a host needs to know of the four."""
        return {
            "burst": int(self.output_burst),
            "rate": int(self.output_rate),
            "shown": int(self.output_shown),
            "log": int(self.output_log),
        }

    @property
    def head_file(self) -> Path | None:
        """What the head of a cluster with machines of its own is told; None: the local cloud."""
        path = self.home / "head.json"
        return path if path.exists() else None

    @property
    def connection_file(self) -> Path:
        return self.home / "gateway.json"

    @property
    def clusters(self) -> Path:
        """What `up` notes of each cluster elsewhere."""
        return self.home / "clusters"

    @property
    def record_file(self) -> Path:
        """The specification of the embedded cluster, if it was brought up by one."""
        return self.home / "cluster.json"

    @property
    def lock_file(self) -> Path:
        return self.home / "gateway.lock"

    @property
    def start_lock_file(self) -> Path:
        return self.home / "start.lock"

    @property
    def log_file(self) -> Path:
        return self.home / "gateway.log"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.home / 'gateway.db'}"

    @property
    def cloud_root(self) -> Path:
        return self.home / "cloud"

    @property
    def store_url(self) -> str:
        return self.store or f"file://{self.home.resolve() / 'store'}"

    @property
    def store_key_file(self) -> Path:
        """One key a store, outside of it: two homes of a user with the same store share it."""
        if self.store_key is not None:
            return self.store_key
        at_home = self.home / "store.key"
        if self.store is None or at_home.exists():
            return at_home
        return self.key_file_of(self.store)

    @staticmethod
    def key_file_of(store: str) -> Path:
        """The file of the key of a store of one's own."""
        digest = hashlib.blake2b(store.rstrip("/").encode(), digest_size=8).hexdigest()
        base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        return Path(base) / "mlcloud" / "keys" / f"{digest}.key"

    @property
    def ray_dir(self) -> Path:
        """Short, because Ray's unix socket paths must end within 107 bytes."""
        digest = hashlib.blake2b(str(self.home.resolve()).encode(), digest_size=4).hexdigest()
        return Path(tempfile.gettempdir()) / f"mlcloud-{os.getuid()}" / digest

    def make_folders(self) -> None:
        """Create `home` and the Ray folder, private to this user.

        Raises `ConnectionFailed` where somebody else owns the shared temporary folder's part.
        """
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.cloud_root.mkdir(exist_ok=True, mode=0o700)
        parent = self.ray_dir.parent
        parent.mkdir(exist_ok=True, mode=0o700)
        facts = parent.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
            raise ConnectionFailed(
                f"{parent} belongs to another user; remove it or set TMPDIR to a folder of your own"
            )
