"""What every benchmark ends with: a table for people, JSON for scripts.

Rows are measured side by side in one run: their ratios mean something, their times only on this
machine.
"""

from __future__ import annotations

import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("out")


def report(name: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Print `rows` as a table and write them to `benchmarks/out/<name>.json`."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [columns, ["-" * width for width in widths], *cells]:
        print(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{name}.json"
    record = {
        "at": datetime.now(timezone.utc).isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **facts,
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {path}")


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
