"""`mlcloud …` in a shell: the same calls as in Python and as `%mlcloud`."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from mlcloud import __version__
from mlcloud.client.notebook.cli import kernelspec
from mlcloud.commands.checkpoints import checkpoints
from mlcloud.commands.jobs import jobs
from mlcloud.commands.market import prices, simulate
from mlcloud.errors import CloudRefused, MLCloudError, UsageError


class Group(click.Group):
    """Errors of ours are one line and exit code 1; an unknown command gets a suggestion."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except MLCloudError as error:
            click.echo(f"{type(error).__name__}: {error}", err=True)
            sys.exit(1)


@click.group(cls=Group)
@click.version_option(__version__)
def main() -> None:
    """A notebook cell that runs on a cloud GPU, costs only while it runs, and cannot be lost."""


@main.command()
@click.argument("file", required=False)
def up(file: str | None) -> None:
    """Start a cluster, or find the running one.

    FILE is a cluster.yaml; without it, the embedded cluster on this computer.
    """
    _run("up", *([file] if file else []))


@main.command()
@click.argument("file", required=False)
def down(file: str | None) -> None:
    """End a cluster and everything it runs; sessions stay in the store.

    FILE is a cluster.yaml, or the name of a cluster that was brought up from here; without it, the
    embedded cluster on this computer.
    """
    _run("down", *([file] if file else []))


@main.command()
@click.argument("file", required=False)
@click.option("--gpu", metavar="NAME:COUNT", help="An accelerator, e.g. A10G:1.")
@click.option("--cpus", metavar="N", help="vCPUs.")
@click.option("--memory", metavar="SIZE", help="Memory, e.g. 32GB.")
@click.option("--spot", is_flag=True, help="Spot, with on-demand as the way out.")
@click.option("--on-demand", is_flag=True, help="Nodes that are not taken back.")
@click.option("--hours", metavar="N", help="Hours of work to estimate, or a duration (2).")
@click.option("--cloud", metavar="NAME", help="Without FILE: aws, gcp or azure.")
@click.option("--region", multiple=True, metavar="NAME", help="Of that cloud; several times.")
@click.option("--quotas", is_flag=True, help="Ask the cloud what the account may have.")
@click.option("--json", "as_json", is_flag=True, help="Every row as JSON.")
@click.option("--config", is_flag=True, help="What the first launch would be told, as YAML.")
def plan(
    file: str | None,
    spot: bool,
    on_demand: bool,
    region: tuple[str, ...],
    quotas: bool,
    as_json: bool,
    config: bool,
    **options: str | None,
) -> None:
    """What a cluster would cost: offers ranked, with $/h, an estimate, and what bills beside.

    FILE is a cluster.yaml; without it, the local cloud. Nothing is started, and no credentials are
    needed but for --quotas.
    """
    words = [file] if file else []
    words += [word for key, value in options.items() if value for word in (f"--{key}", value)]
    words += [word for each in region for word in ("--region", each)]
    words += ["--spot"] * spot + ["--on-demand"] * on_demand
    words += ["--quotas"] * quotas + ["--json"] * as_json + ["--config"] * config
    _run("plan", *words)


@main.command()
def schema() -> None:
    """The JSON schema of cluster.yaml, for editors."""
    import json

    from mlcloud.cluster.specification import schema as made

    click.echo(json.dumps(made(), indent=2, ensure_ascii=False))


@main.command()
def status() -> None:
    """Nodes, sessions, spending."""
    _run("status")


@main.command()
def sessions() -> None:
    """Every session, its state and what it has cost."""
    _run("sessions")


@main.command()
@click.option("--by", metavar="FIELDS", help="session (default), day, node, user, tag:KEY …")
@click.option("--since", metavar="7d", help="So long ago, or a day: 2026-01-31.")
@click.option("--until", metavar="DAY", help="The same.")
@click.option("--focus", metavar="FILE", help="Write a FOCUS 1.1 CSV.")
@click.option("--reconcile", metavar="BILL", help="Beside the cloud's bill: a file, or aws.")
@click.option("--cluster", metavar="NAME", help="Whose lines of the bill.")
@click.option("--json", "as_json", is_flag=True, help="Every row as JSON.")
def cost(as_json: bool, **options: str | None) -> None:
    """What was spent, and what is being spent per hour.

    \b
    mlcloud cost --by day --since 30d
    mlcloud cost --by tag:team,session
    mlcloud cost --reconcile bill.csv
    """
    words = [word for key, value in options.items() if value for word in (f"--{key}", value)]
    _run("cost", *words, *(["--json"] if as_json else []))


@main.command()
@click.argument("limit", required=False)
@click.option("--session", metavar="NAME", help="Of this session; default: the cluster's.")
@click.option("--user", metavar="NAME", help="Of all sessions that are this user's.")
@click.option("--job", metavar="ID", help="Of this job, in all.")
@click.option("--alerts", metavar="0.5,0.8", help="Parts of it to be told of.")
@click.option("--remove", is_flag=True, help="From now on there is none.")
def budget(limit: str | None, remove: bool, **options: str | None) -> None:
    """Show the budgets, or set one: 5, 5/h, 50/day or 1000/month dollars."""
    words = [word for key, value in options.items() if value for word in (f"--{key}", value)]
    words = [*([limit] if limit else []), *words]
    _run("budget", *words, *(["--remove"] if remove else []))


@main.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--cloud", metavar="NAME", help="Without FILE: aws, gcp, azure or kubernetes.")
@click.option("--region", multiple=True, metavar="NAME", help="Of that cloud; several times.")
@click.option("--remove", is_flag=True, help="Remove what is found; asks first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="As JSON; removes nothing.")
def gc(
    file: str | None,
    cloud: str | None,
    region: tuple[str, ...],
    remove: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Find what clusters left in a cloud's account, and remove it with --remove.

    With FILE (a cluster.yaml): all that this cluster has there, so while it runs, its machines too.
    Without: what has expired of any cluster, in the cloud and regions that are named.
    """
    import json

    from mlcloud.client.leftovers import leftovers

    if file is None and cloud is None:
        raise UsageError("mlcloud gc: name a cluster.yaml, or a --cloud (and its --region)")
    found = leftovers(file, cloud=cloud, regions=region)
    if as_json:
        click.echo(json.dumps(found.record(), indent=1))
        return
    click.echo(repr(found))
    if not remove or not found:
        return
    if not yes:
        click.confirm(f"remove these {len(found)}?", abort=True)
    left = found.remove(
        lambda each, error: click.echo(f"{each.kind} {each.id}: {error or 'removed'}")
    )
    if left:
        raise CloudRefused(f"{len(left)} of {len(found)} could not be removed: {left[0][1]}")


@main.command()
@click.option("--own", multiple=True, metavar="MACHINE", help="One that might be bought.")
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON.")
def advise(own: tuple[str, ...], as_json: bool) -> None:
    """What could be saved, the biggest saving first, with its arithmetic.

    MACHINE is name=box,watts=650,kwh=0.30,purchase=4000,years=4,cpus=16,memory=64GB and perhaps
    gpu=A100:1, resale=500: it is compared with what the cloud has cost.
    """
    words = [word for each in own for word in ("--own", each)]
    _run("advise", *words, *(["--json"] if as_json else []))


@main.command()
@click.argument("session")
def attach(session: str) -> None:
    """Show a session's running or last cell from its first output on, until it ends."""
    _run("attach", session)


@main.command()
@click.argument("session")
def state(session: str) -> None:
    """Each variable of a session, and what a move would do to it."""
    _run("state", session)


@main.command()
@click.argument("session")
@click.option("--lines", default=100, show_default=True, help="Show the last lines.")
@click.option("--save", metavar="FILE", help="Write all of it to a file instead.")
def log(session: str, lines: int, save: str | None) -> None:
    """What a session's last cell has printed, all of it."""
    words = ["--session", session, "--lines", str(lines)]
    _run("log", *words, *(["--save", save] if save else []))


@main.command()
@click.argument("session")
def history(session: str) -> None:
    """The states of a session that `restore` and `fork` can go back to."""
    _run("history", session)


@main.command()
@click.argument("session")
@click.argument("step", type=int)
def restore(session: str, step: int) -> None:
    """Put a session into the state it had after this step of its history."""
    _run("restore", str(step), "--session", session)


@main.command()
@click.argument("session")
def restart(session: str) -> None:
    """Give a session a new kernel, without any name; `restore` takes it back."""
    _run("restart", session)


@main.command()
@click.argument("session")
@click.argument("name")
@click.option("--step", type=int, help="Of its history; default: the newest.")
def fork(session: str, name: str, step: int | None) -> None:
    """Begin another session with the state of this one."""
    words = [name, "--session", session]
    _run("fork", *words, *(["--step", str(step)] if step is not None else []))


@main.command()
@click.argument("session")
def close(session: str) -> None:
    """End a session for good, and give its node back."""
    _run("close", session)


@main.command()
@click.argument("session")
def env(session: str) -> None:
    """The packages of this Python beside a session's."""
    _run("env", session, "--all")


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("where", required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--cluster", metavar="NAME", help="Default: that of MLCLOUD_URL, or the only one.")
def ssh(where: str | None, command: tuple[str, ...], cluster: str | None) -> None:
    """A shell on the machine of a node or a session, or COMMAND there; default: on the head."""
    from mlcloud.client import reaching
    from mlcloud.config import Settings

    settings = Settings()
    place = reaching.target(where, reaching.chosen(cluster, settings), settings)
    sys.exit(reaching.shell(place, command))


@main.command()
@click.argument("where")
@click.argument("port", type=click.IntRange(1, 65535))
@click.option("--local", type=click.IntRange(1, 65535), help="The port here; default: the same.")
@click.option("--cluster", metavar="NAME", help="Default: that of MLCLOUD_URL, or the only one.")
def forward(where: str, port: int, local: int | None, cluster: str | None) -> None:
    """A port of a node's or a session's machine, such as TensorBoard's, here. Ends with Ctrl-C."""
    import time

    from mlcloud.client import reaching
    from mlcloud.config import Settings

    settings = Settings()
    place = reaching.target(where, reaching.chosen(cluster, settings), settings)
    with reaching.forwarded(place, port, local) as url, contextlib.suppress(KeyboardInterrupt):
        click.echo(f"{url} is port {port} of {place.host}; Ctrl-C ends it")
        while True:
            time.sleep(3600)


@main.command()
@click.argument("session")
def park(session: str) -> None:
    """Give a session's node back; its state stays in the store."""
    _run("park", session)


@main.command()
@click.argument("session")
@click.option("--gpu", metavar="NAME:COUNT", help="Another accelerator; `none` for none.")
@click.option("--cpus", metavar="N", help="Other vCPUs.")
@click.option("--memory", metavar="SIZE", help="Another memory limit; `none` for the node's.")
@click.option("--spot", is_flag=True, help="A spot node.")
@click.option("--on-demand", is_flag=True, help="A node that is not taken back.")
def resume(session: str, spot: bool, on_demand: bool, **shape: str | None) -> None:
    """Bring a parked session back on a node; with options, put it on that shape."""
    words = [word for key, value in shape.items() if value for word in (f"--{key}", value)]
    words += ["--spot"] * spot + ["--on-demand"] * on_demand
    _run("resume", session, *words)


@main.command()
@click.argument("target")
@click.option("--notice", default="2m", show_default=True, help="Time between notice and the end.")
def preempt(target: str, notice: str) -> None:
    """A drill: take a spot node (or a session's node) away."""
    _run("preempt", target, "--notice", notice)


for _command in (jobs, prices, simulate, checkpoints):
    main.add_command(_command)


main.add_command(kernelspec)


def _run(command: str, *words: str) -> None:
    from mlcloud.magics.commands import COMMANDS

    answer = COMMANDS[command](list(words))
    if answer is not None:
        click.echo(repr(answer))


if __name__ == "__main__":
    main()
