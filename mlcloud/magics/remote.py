"""`%%remote`: parse the line, call the client."""

from __future__ import annotations

from typing import Any

from mlcloud.errors import UsageError
from mlcloud.magics.parser import HelpShown, Parser, add_shape, shape


def remote_parser() -> Parser:
    parser = Parser(
        prog="%%remote", description="Run this cell in a remote session.", allow_abbrev=False
    )
    add = parser.add_argument
    add_shape(parser)
    add("--session", metavar="NAME", help="a named session; without it, this notebook's own")
    add("--workers", type=int, metavar="N", help="so many kernels, one rank each (1)")
    add("--in", dest="only_in", metavar="A,B", help="ship exactly these names; they win")
    add("--out", metavar="C", help="bring back exactly these names, whatever their size")
    add("--dry", action="store_true", help="show what would ship, and run nothing")
    add("--max-cost", metavar="DOLLARS", help="interrupt the cell when it has cost so much")
    add("--timeout", metavar="DURATION", help="interrupt the cell after this long, e.g. 2h")
    add(
        "--on-preempt",
        choices=["rerun", "ask", "fail"],
        help="when the node is taken away in the cell: run it again, ask, or fail; by default it "
        "runs again, unless it was seen to write outside its workspace or to the network: ask",
    )
    add(
        "--detach",
        action="store_true",
        help="return at once; the cell goes on, also when the notebook is closed",
    )
    add("--durable", action="store_true", help="wait until the cell's state is in the store")
    add("--keep-remote", action="store_true", help="where both sides changed, the session's wins")
    add(
        "--secret",
        action="append",
        metavar="NAME[=SOURCE]",
        help="an environment variable of the session, from this notebook's or its keyring, or from "
        "keyring:SERVICE/USER, env:VARIABLE, aws:NAME, …; may be given several times",
    )
    add(
        "--data",
        action="append",
        metavar="PATH=URL",
        help="a folder of the session with the files of s3://…, gs://… or az://…, there before its "
        "first cell; may be given several times",
    )
    add("--quiet", action="store_true", help="no footer")
    return parser


def run_remote(line: str, cell: str) -> Any:
    """`%%remote`. Returns a handle of a detached cell, else None."""
    try:
        options = remote_parser().read(line)
    except HelpShown:
        return None
    if options.detach and options.durable:
        raise UsageError("%%remote: --durable waits for the cell and --detach does not: choose one")
    from mlcloud.client.api import default
    from mlcloud.client.errors import show_as_it_was
    from mlcloud.units import parse_duration

    timeout = None if options.timeout is None else parse_duration(options.timeout).total_seconds()
    wanted = shape(options)
    if options.workers is not None:
        wanted["workers"] = options.workers
    if options.secret:
        from mlcloud.client.secrets import read_words

        wanted["secrets"] = read_words(options.secret)
    if options.data:
        wanted["data"] = _mounts(options.data)
    client = default()
    session = client.known(options.session)
    # A cell that asks for nothing runs wherever the session is; asking is checked against it.
    if session is None or wanted:
        session = client.session(options.session, **wanted)
    if options.dry:
        _show_rows(session.dry(cell))
        return None
    try:
        return session.run(
            cell,
            only_in=_names(options.only_in),
            out=_names(options.out),
            keep_remote=options.keep_remote,
            timeout=timeout,
            max_cost=options.max_cost,
            on_preempt=options.on_preempt,
            durable=options.durable,
            quiet=options.quiet,
            result_hook=True,
            detach=options.detach,
        )
    except BaseException as error:
        show_as_it_was(error)
        raise


def _mounts(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        path, equals, url = word.partition("=")
        if not equals or not url:
            raise UsageError("%%remote: --data is PATH=URL such as /data=s3://bucket/prefix")
        found[path] = url
    return found


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip()]


def _show_rows(rows: list[Any]) -> None:
    """What `--dry` found, a name a line."""
    from IPython.display import display

    from mlcloud.units import format_bytes
    from mlcloud.widgets.tables import table

    heads = ("name", "type", "bytes", "changed since", "where from", "action", "why")
    lines = [
        (
            *(row.name, row.type, "" if row.bytes is None else format_bytes(row.bytes)),
            *(row.since, row.source, row.action, row.why),
        )
        for row in rows
    ]
    display(table(heads, lines, numbers=["bytes"]), raw=True)
