"""`%mlcloud COMMAND …`, and the same commands in a shell."""

from __future__ import annotations

import os
import shlex
from difflib import get_close_matches
from typing import Any

from mlcloud.errors import UsageError
from mlcloud.magics.parser import HelpShown, Parser, add_shape, shape, split


def _up(words: list[str]) -> Any:
    """`up [FILE]`: the embedded cluster, or the one of a `cluster.yaml`."""
    file = _file("up", words)
    if file is not None:
        from mlcloud.client.cluster import Cluster

        return Cluster.from_file(file).up()
    from mlcloud.client.api import connect

    return connect().cluster.status()


def _file(command: str, words: list[str]) -> str | None:
    """The one FILE that these commands take."""
    parser = Parser(prog=f"%mlcloud {command}", allow_abbrev=False)
    parser.add_argument("file", nargs="?", help="a cluster.yaml; default: the embedded cluster")
    file: str | None = parser.read(shlex.join(words)).file
    return file


def _plan(words: list[str]) -> Any:
    """`plan [FILE] [--gpu A10G:1] …`: what it would cost. Starts nothing."""
    parser = Parser(prog="%mlcloud plan", allow_abbrev=False)
    add = parser.add_argument
    add("file", nargs="?", help="a cluster.yaml; default: the embedded cluster's local cloud")
    add_shape(parser)
    add("--hours", default="2", help="hours of work to estimate, or a duration such as 90m (2)")
    add("--cloud", help="another cloud, without a file: aws, gcp, azure")
    add("--region", action="append", help="of that cloud; may be given several times")
    add("--quotas", action="store_true", help="ask the cloud what the account may have")
    add("--json", action="store_true", help="print every row as JSON")
    add("--config", action="store_true", help="print what the first launch would be told")
    options = parser.read(shlex.join(words))
    from mlcloud.client.planning import plan

    found = plan(
        options.file,
        hours=options.hours,
        cloud=options.cloud,
        regions=options.region,
        quotas=options.quotas,
        **shape(options),
    )
    if not (options.json or options.config):
        return found
    if options.json:
        import json

        print(json.dumps({**found.record(), "configuration": found.configuration}, indent=2))
    else:
        from mlcloud.cluster.specification.document import dump

        print(dump(found.configuration), end="")
    return None


def _down(words: list[str]) -> None:
    """`down [FILE|NAME]`: the embedded cluster, or that of a `cluster.yaml` or of this name."""
    file = _file("down", words)
    if file is not None and not os.path.exists(file):
        from mlcloud.client import launching

        launching.down(file)
        return
    if file is not None:
        from mlcloud.client.cluster import Cluster

        cluster = Cluster.from_file(file)
        cluster.down()
        print(f"cluster {cluster.name} is down; its sessions are in the store")
        return
    from mlcloud.client import embedded
    from mlcloud.config import Settings

    found = embedded.down(Settings())
    print("the cluster is down; its sessions are in the store" if found else "nothing was running")


def _status(_: list[str]) -> Any:
    from mlcloud.client.api import default

    return default().cluster.status()


def _show(words: list[str]) -> Any:
    """`show [prices]`: the dashboard, or what the clouds sell."""
    from mlcloud.client.show import show

    if len(words) > 1:
        raise UsageError("%mlcloud show [prices]")
    return show(*words)  # type: ignore[arg-type]


def _sessions(_: list[str]) -> None:
    from mlcloud.client.api import sessions

    for each in sessions():
        gang = f"  {each.workers} workers" if each.workers > 1 else ""
        where = each.instance_type or "no node"
        print(f"{each.name}  {each.state.value}  {where}{gang}  ${each.usd}")


def _state(words: list[str]) -> Any:
    """`state [SESSION]`: each variable, and what a move would do to it."""
    return _session(words).saved()


def _history(words: list[str]) -> Any:
    """`history [SESSION]`: the states that `restore` can go back to."""
    return _session(words).history()


def _restore(words: list[str]) -> None:
    """`restore STEP [--session NAME]`: the session's names as they were after that cell."""
    parser = Parser(prog="%mlcloud restore", allow_abbrev=False)
    parser.add_argument("step", type=int, help="of `%%mlcloud history`")
    parser.add_argument("--session", metavar="NAME", help="default: this notebook's own")
    options = parser.read(shlex.join(words))
    session = _session([options.session] if options.session else [])
    session.restore(options.step)
    print(
        f"session {session.name} is as it was after step {options.step}; what came after that is "
        "in its history still"
    )


def _restart(words: list[str]) -> None:
    """`restart [SESSION]`: a new kernel without any name; `restore` takes it back."""
    session = _session(words)
    session.restart()
    print(f"session {session.name} has a new kernel; what it had is in its history")


def _fork(words: list[str]) -> None:
    """`fork NAME [--step N] [--session NAME]`: another session, with the state of this one."""
    parser = Parser(prog="%mlcloud fork", allow_abbrev=False)
    parser.add_argument("name", help="of the new session")
    parser.add_argument("--step", type=int, help="of `%%mlcloud history`; default: the newest")
    parser.add_argument("--session", metavar="NAME", help="default: this notebook's own")
    options = parser.read(shlex.join(words))
    session = _session([options.session] if options.session else [])
    made = session.fork(options.name, step=options.step)
    print(f"session {made.name} begins with the state of {session.name}: --session {made.name}")


def _close(words: list[str]) -> None:
    """`close SESSION`: end it for good. Its name is asked for: nothing brings it back."""
    if not words:
        raise UsageError("%mlcloud close ends a session for good: name it")
    session = _session(words)
    session.close()
    print(f"session {session.name} is closed")


def _attach(words: list[str]) -> None:
    """`attach [SESSION]`: the output of its running or last cell, from its beginning on."""
    _session(words).follow()


def _park(words: list[str]) -> None:
    session = _session(words)
    session.park()
    print(f"session {session.name} is parked: its node is given back, its state is in the store")


def _resume(words: list[str]) -> None:
    """`resume [SESSION] [--gpu A10G:1] …`: on another shape, where one is given."""
    parser = Parser(prog="%mlcloud resume", allow_abbrev=False)
    parser.add_argument("session", nargs="?", help="a session; default: this notebook's")
    add_shape(parser)
    options = parser.read(shlex.join(words))
    session = _session([options.session] if options.session else [])
    session.resume(**shape(options))
    print(repr(session))


def _preempt(words: list[str]) -> None:
    """`preempt [SESSION or NODE] [--notice 10s]`."""
    from mlcloud.client.api import default

    parser = Parser(prog="%mlcloud preempt", allow_abbrev=False)
    parser.add_argument("target", nargs="?", help="a session or node; default: this notebook's")
    parser.add_argument("--notice", default="2m", help="time between notice and the end (2m)")
    options = parser.read(shlex.join(words))
    target = options.target or _session([]).name
    notice = default().cluster.preempt(target, options.notice)
    print(
        f"drill: {notice.node} has its notice and is taken back at {notice.deadline:%H:%M:%S} UTC"
    )


def _cost(words: list[str]) -> Any:
    """`cost [--by day] [--since 7d] [--until DAY] [--json] [--focus FILE] [--reconcile BILL]`."""
    from mlcloud.client.api import default

    parser = Parser(prog="%mlcloud cost", allow_abbrev=False)
    parser.add_argument(
        "--by", default="session", help="session, day, node, user, tag:KEY, execution … (session)"
    )
    parser.add_argument("--since", metavar="7d", help="so long ago, or a day: 2026-01-31")
    parser.add_argument("--until", metavar="DAY", help="the same")
    parser.add_argument("--json", action="store_true", help="every row, money as text")
    parser.add_argument("--focus", metavar="FILE", help="write a FOCUS 1.1 CSV")
    parser.add_argument("--reconcile", metavar="BILL", help="the cloud's bill: a file, or aws")
    parser.add_argument("--cluster", metavar="NAME", help="whose lines of the bill")
    options = parser.read(shlex.join(words))
    found = default().costs(options.by, since=options.since, until=options.until)
    if options.focus:
        print(f"{found.focus(options.focus):,} charges written to {options.focus}")
        return None
    if options.reconcile:
        return found.reconcile(options.reconcile, options.cluster)
    if options.json:
        print(found.to_json())
        return None
    return found


def _budget(words: list[str]) -> Any:
    """`budget [50/day] [--session NAME | --user NAME | --job ID] [--alerts 0.5,0.8] [--remove]`:
    show, set or remove one."""
    from mlcloud.client.api import default
    from mlcloud.client.budgets import Budgets
    from mlcloud.cost.budgets import ALERTS, Budget

    parser = Parser(prog="%mlcloud budget", allow_abbrev=False)
    parser.add_argument("limit", nargs="?", help="dollars: 5, 5/h, 50/day, 1000/month")
    parser.add_argument("--session", metavar="NAME", help="of this session; default: the cluster")
    parser.add_argument("--user", metavar="NAME", help="of all sessions that are this user's")
    parser.add_argument("--job", metavar="ID", help="of this job, in all")
    parser.add_argument("--alerts", metavar="0.5,0.8", help="parts of it to be told of")
    parser.add_argument("--remove", action="store_true", help="from now on there is none")
    options = parser.read(shlex.join(words))
    if options.remove and options.limit:
        raise UsageError("%mlcloud budget: give a limit, or --remove")
    client = default()
    scope = {"session": options.session, "user": options.user, "job": options.job}
    if options.remove:
        return Budgets(client.remove_budget(**scope))
    if options.limit is None:
        return Budgets(client.budgets())
    alerts = tuple(_fractions(options.alerts)) if options.alerts else ALERTS
    return Budgets(client.set_budget(Budget(options.limit, **scope, alerts=alerts)))


def _advise(words: list[str]) -> Any:
    """`advise [--own MACHINE] [--json]`: what could be saved, with its arithmetic."""
    from mlcloud.client.api import default

    parser = Parser(prog="%mlcloud advise", allow_abbrev=False)
    parser.add_argument(
        "--own",
        action="append",
        metavar="MACHINE",
        help="one that might be bought: name=box,watts=650,kwh=0.30,purchase=4000,years=4,"
        "cpus=16,memory=64GB; may be given several times",
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    options = parser.read(shlex.join(words))
    found = default().advise(own=options.own or ())
    if options.json:
        print(found.report.model_dump_json(indent=2))
        return None
    return found


def _jobs(words: list[str]) -> Any:
    """`jobs [logs | cancel | rerun | rm | show ID | prune --older 30d]`."""
    from mlcloud.client.job_commands import run

    return run(words)


def _fractions(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise UsageError(f"--alerts are parts of the limit such as 0.5,0.8, not {text!r}") from None


def _env(words: list[str]) -> Any:
    """`env [SESSION] [--all]`."""
    from mlcloud.client.api import default

    parser = Parser(prog="%mlcloud env", allow_abbrev=False)
    parser.add_argument("session", nargs="?", help="a session; default: this notebook's")
    parser.add_argument(
        "--all", action="store_true", help="all that is installed, not only what is loaded here"
    )
    options = parser.read(shlex.join(words))
    client = default()
    session = client.attach(options.session) if options.session else client.known(None)
    if session is None:
        return client.compared(everything=options.all)
    return session.compared(everything=options.all)


def _session(words: list[str]) -> Any:
    from mlcloud.client.api import default

    client = default()
    if words:
        return client.attach(words[0])
    known = client.known(None)
    if known is None:
        raise UsageError("this notebook has run no remote cell yet: name a session")
    return known


def _log(words: list[str]) -> None:
    """`log [EXECUTION] [--session NAME] [--lines 100] [--save FILE]`."""
    parser = Parser(prog="%mlcloud log", allow_abbrev=False)
    parser.add_argument("execution", nargs="?", help="an execution's id; default: the last cell")
    parser.add_argument("--session", metavar="NAME", help="default: this notebook's own")
    parser.add_argument("--lines", type=int, default=100, help="show the last lines (100)")
    parser.add_argument("--save", metavar="FILE", help="write all of it to a file instead")
    options = parser.read(shlex.join(words))
    if options.lines < 1:
        raise UsageError("%mlcloud log: --lines is at least 1")
    log = _session([options.session] if options.session else []).log(options.execution)
    if options.save:
        print(f"written to {log.save(options.save)}")
        return
    text, before = log.tail(options.lines)
    if before:
        print(f"… {before:,} lines before; --lines N shows more, --save FILE writes all of them")
    print(text, end="")


def _debug(words: list[str]) -> None:
    """`debug [SESSION]`: IPython's debugger in the session, in its last error."""
    _session(words).debug()


COMMANDS = {
    "up": _up,
    "plan": _plan,
    "down": _down,
    "status": _status,
    "show": _show,
    "sessions": _sessions,
    "state": _state,
    "history": _history,
    "restore": _restore,
    "restart": _restart,
    "fork": _fork,
    "close": _close,
    "attach": _attach,
    "debug": _debug,
    "park": _park,
    "resume": _resume,
    "preempt": _preempt,
    "cost": _cost,
    "budget": _budget,
    "advise": _advise,
    "jobs": _jobs,
    "env": _env,
    "log": _log,
}


def run_command(line: str) -> Any:
    """`%mlcloud COMMAND …`."""
    words = split(line)
    if not words:
        raise UsageError(f"%mlcloud needs a command: {', '.join(COMMANDS)}")
    command = COMMANDS.get(words[0])
    if command is None:
        near = get_close_matches(words[0], COMMANDS, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UsageError(f"%mlcloud: no command {words[0]!r}; {hint}")
    try:
        return command(words[1:])
    except HelpShown:
        return None
