"""`mlcloud …` in a shell: the same calls as in Python and as `%mlcloud`."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click

from mlcloud import __version__
from mlcloud.errors import CloudRefused, MLCloudError, UsageError

KEY_VARIABLE = "MLCLOUD_ENCRYPTION_KEY"  # a key's file, or the key in base64

_FORMATS = click.Choice(["safetensors", "pt", "dcp"])


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
@click.option("--alerts", metavar="0.5,0.8", help="Parts of it to be told of.")
@click.option("--remove", is_flag=True, help="From now on there is none.")
def budget(limit: str | None, session: str | None, alerts: str | None, remove: bool) -> None:
    """Show the budgets, or set one: 5, 5/h, 50/day or 1000/month dollars."""
    words = [*([limit] if limit else []), *(["--session", session] if session else [])]
    words += ["--alerts", alerts] if alerts else []
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

    from mlcloud.client.sweeping import leftovers

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


@main.group(invoke_without_command=True)
@click.option("--cloud", "clouds", multiple=True, help="aws, gcp or azure. Default: all.")
@click.option("--region", "regions", multiple=True, help="May be given several times.")
@click.option("--gpu", metavar="NAME[:COUNT]", help="At least so many of this accelerator.")
@click.option("--cpus", metavar="N", help="At least so many vCPUs.")
@click.option("--memory", metavar="SIZE", help="At least so much memory.")
@click.option("--spot", is_flag=True, help="Only spot.")
@click.option("--on-demand", is_flag=True, help="Only on-demand.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="All of them, zone by zone, as JSON.")
@click.pass_context
def prices(context: click.Context, /, **asked: Any) -> None:
    """What the clouds sell, cheapest first.

    \b
    mlcloud prices --gpu A100 --region eu-central-1 --region europe-west4
    mlcloud prices refresh --cloud azure --region westeurope
    """
    if context.invoked_subcommand is None:
        from mlcloud.cost.price_table import show

        show(**asked)


@prices.command("refresh")
@click.option("--cloud", "clouds", multiple=True, help="aws, gcp or azure. Default: all.")
@click.option("--region", "regions", multiple=True, help="Default: all that are known.")
def prices_refresh(clouds: tuple[str, ...], regions: tuple[str, ...]) -> None:
    """Ask the clouds for their prices.

    They are kept under MLCLOUD_HOME/prices and shown instead of older ones. AWS and Google Cloud
    need credentials, Azure none. What cannot be read keeps its old prices; exit code 1 where
    nothing could be.
    """
    from mlcloud.cost.price_table import refreshed

    if not refreshed(clouds, regions):
        sys.exit(1)


@main.command()
@click.argument("traces", nargs=-1, metavar="TRACE...")
@click.option("--job", default="48h", show_default=True, help="Hours of computation.")
@click.option("--fraction", default=0.8, show_default=True, help="The job's share of its deadline.")
@click.option(
    "--changeover", default="12m", show_default=True, help="What a start on a node costs."
)
@click.option("--price-ratio", default=3.1446, show_default=True, help="On-demand over spot.")
@click.option("--starts", default=300, show_default=True, help="Random starts in each trace.")
@click.option("--seed", default=0, show_default=True, help="Of the random starts.")
@click.option("--within", metavar="DURATION", help="Use this much of each trace, `13d`.")
@click.option("--policy", default="auto", show_default=True, help="Or uniform-progress, greedy, …")
@click.option(
    *("--zones", "zones"),
    type=click.Choice(["apart", "together"]),
    default="apart",
    show_default=True,
    help="Each trace for itself, or all as the zones of one market.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def simulate(traces: tuple[str, ...], zones: str, as_json: bool, **options: Any) -> None:
    """Replay traces of spot availability: what a deadline policy would have cost.

    A TRACE is JSON: {"metadata": {"gap_seconds": 600}, "data": [1, 0, …]}, the spot nodes that
    could be had at each sample. Costs are over those of the same work on demand.
    """
    import json

    from mlcloud.cluster.simulation import HEADS, Replay, lines, simulate
    from mlcloud.cluster.traces import read_trace
    from mlcloud.errors import UsageError
    from mlcloud.units import parse_duration

    if not traces:
        raise UsageError("no trace: name at least one file of spot availability")
    seconds = {
        name: None if options[name] is None else parse_duration(options[name]).total_seconds()
        for name in ("job", "changeover", "within")
    }
    found = simulate(
        [read_trace(path) for path in traces],
        Replay(
            seconds["job"] or 0.0,
            options["fraction"],
            seconds["changeover"] or 0.0,
            options["price_ratio"],
        ),
        policy=options["policy"],
        starts=options["starts"],
        seed=options["seed"],
        together=zones == "together",
        within_s=seconds["within"],
    )
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    _table(HEADS, lines(found))


@main.group()
def checkpoints() -> None:
    """Series of checkpoints in a store: a folder, s3://…, gs://… or az://…

    \b
    mlcloud checkpoints ls s3://bucket/runs --name exp/7
    mlcloud checkpoints export s3://bucket/runs model.safetensors --part model
    mlcloud checkpoints import ./runs ./llama-3-8b --part model
    """


def _series(function: Any) -> Any:
    """The arguments that say which series is meant."""
    function = click.option("--name", metavar="SERIES", help="Which, where the store has several.")(
        function
    )
    function = click.option(
        *("--key", "key"),
        metavar="FILE",
        expose_value=False,
        callback=lambda context, _, value: context.meta.update({"mlcloud.key": value}),
        help=f"The key of a sealed store, or env:VARIABLE. Default: ${KEY_VARIABLE}.",
    )(function)
    return click.argument("store")(function)


@checkpoints.command("new-key")
@click.argument("file", type=click.Path(dir_okay=False))
def checkpoints_new_key(file: str) -> None:
    """Make the key of a store that is sealed.

    Python takes it by Store(url, key=FILE), these commands by --key FILE.
    """
    from mlcloud.store import new_key

    click.echo(f"{file} holds the key {new_key(file)}. Keep a copy elsewhere, not in the store:")
    click.echo("without it nobody can read what is sealed with it.")


@checkpoints.command("ls")
@_series
@click.option("--last", type=click.IntRange(min=1), help="Only so many of the newest.")
def checkpoints_ls(store: str, name: str | None, last: int | None) -> None:
    """Its steps: size, what was new, age, metric.

    Damaged ones are listed too, with what is wrong.
    """
    click.echo(repr(_checkpoints(store, name).overview(last)))


@checkpoints.command("show")
@_series
@click.argument("step", type=int, required=False)
def checkpoints_show(store: str, name: str | None, step: int | None) -> None:
    """What a step has in it.

    Without STEP, the newest that is undamaged.
    """
    from mlcloud.units import format_bytes

    with _told():
        rows = _checkpoints(store, name).show(step)
    lines = [
        (
            *(each.name, each.kind, "" if each.shape is None else list(each.shape)),
            *("" if each.shape is None else format_bytes(each.bytes), each.value),
        )
        for each in rows
    ]
    _table(("name", "type", "shape", "bytes", "value"), lines)


@checkpoints.command("diff")
@_series
@click.argument("before", type=int)
@click.argument("after", type=int)
def checkpoints_diff(store: str, name: str | None, before: int, after: int) -> None:
    """The values that differ between two steps.

    And by how much at most, where they are numbers.
    """
    found = _checkpoints(store, name).diff(before, after)
    if not found:
        click.echo(f"steps {before} and {after} hold the same")
        return
    lines = [
        (
            *(each.name, each.what, each.before, each.after),
            "" if each.most is None else f"{each.most:.3g}",
        )
        for each in found
    ]
    _table(("name", "", "before", "after", "most"), lines)


@checkpoints.command("verify")
@_series
@click.argument("step", type=int, required=False)
def checkpoints_verify(store: str, name: str | None, step: int | None) -> None:
    """Read every byte of a step, or of all.

    Exit code 1 where something is wrong.
    """
    series = _checkpoints(store, name)
    wrong = series.verify(step)
    for line in wrong:
        click.echo(line)
    if wrong:
        sys.exit(1)
    count = 1 if step is not None else len(series.steps())
    click.echo(f"{count} step{'s' if count != 1 else ''}: all is well")


@checkpoints.command("export")
@_series
@click.argument("path", type=click.Path())
@click.option("--step", type=int, help="Default: the newest that is undamaged.")
@click.option("--part", help="One entry of the state, such as `model`.")
@click.option("--format", type=_FORMATS, help="Where the name of PATH does not say it.")
def checkpoints_export(
    store: str, name: str | None, path: str, step: int | None, part: str | None, format: Any
) -> None:
    """Write a step for other tools.

    PATH says in which form. It appears whole or not at all.

    \b
    x.safetensors   its tensors and arrays
    x.pt, x.pth     its state dicts, for torch.load
    a folder        for torch.distributed.checkpoint.load (a path without suffix)
    """
    with _told():
        made = _checkpoints(store, name).export(path, step, part=part, format=format)
    click.echo(f"written to {made}")


@checkpoints.command("import")
@_series
@click.argument("path", type=click.Path())
@click.option("--step", type=int, help="Default: what an export noted in PATH, else the next.")
@click.option("--part", help="The entry of the state that it becomes, such as `model`.")
@click.option("--metric", type=float, help="To remember with the step.")
@click.option("--format", type=_FORMATS, help="Where the name of PATH does not say it.")
def checkpoints_import(
    store: str, name: str | None, path: str, format: Any, part: str | None, **of_step: Any
) -> None:
    """Commit what another tool wrote as a step.

    The series may be new. PATH is one of

    \b
    x.safetensors            its tensors
    x.pt .pth .bin .ckpt     what torch's safe unpickler takes; no code is run
    a folder                 of torch.distributed.checkpoint, or a Hugging Face
                             model in one or several safetensors files
    """
    from mlcloud.units import format_bytes

    series = _checkpoints(store, name, new=True)
    made = series.import_from(path, part=part, format=format, **of_step)
    click.echo(
        f"step {made.step} of {series.name}: {format_bytes(made.bytes)}, "
        f"{format_bytes(made.new_bytes)} of it new"
    )


@checkpoints.command("prune")
@_series
@click.option("--keep", default=5, show_default=True, help="So many of the newest steps.")
@click.option("--best", default=0, help="And so many with the best metric.")
@click.option("--mode", type=click.Choice(["min", "max"]), default="min", show_default=True)
@click.option("--every", metavar="DURATION", help="And one in each span of this length, `1h`.")
def checkpoints_prune(
    store: str, name: str | None, keep: int, best: int, mode: Any, every: str | None
) -> None:
    """Remove all steps but those to keep.

    Their chunks go when nobody else names them. Refused where none that would stay can be loaded.
    """
    from mlcloud.checkpoint import Keep

    series = _checkpoints(store, name)
    with _told():
        removed = series.prune(Keep(keep, best, mode, every))
        found = series.store.prune()
    click.echo(f"removed {len(removed)} step{'s' if len(removed) != 1 else ''}")
    if found.marked and found.due:
        click.echo(f"{found.marked} chunks go with a prune after {found.due:%Y-%m-%d %H:%M} UTC")


def _checkpoints(store: str, name: str | None, *, new: bool = False) -> Any:
    """The series that is meant; with `new`, it need not be there yet."""
    from mlcloud import Checkpoints
    from mlcloud.checkpoint.step import KIND
    from mlcloud.errors import NotFound, UsageError
    from mlcloud.store import Store
    from mlcloud.units import suggest

    key = click.get_current_context().meta.get("mlcloud.key")
    if key is None and os.environ.get(KEY_VARIABLE):
        key = f"env:{KEY_VARIABLE}"
    opened = Store(store, key=key)
    names = opened.names(KIND)
    if new and (name or not names):
        return Checkpoints(opened, *([name] if name else []))
    if name is None:
        if len(names) != 1:
            raise UsageError(
                f"the store at {opened.url} has {len(names)} series of checkpoints"
                + (f": {', '.join(names)}; choose one by --name" if names else "")
            )
        name = names[0]
    if name not in names:
        there = f"it has {', '.join(names)}" if names else "it has none at all"
        raise NotFound(
            f"the store at {opened.url} has no checkpoints {name!r}; {there}{suggest(name, names)}"
        )
    return Checkpoints(opened, name)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Warnings are lines for the user here, without the code that gave them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for each in caught:
                if issubclass(each.category, UserWarning):
                    click.echo(f"warning: {each.message}", err=True)


def _table(heads: tuple[str, ...], lines: list[tuple[Any, ...]]) -> None:
    from mlcloud.widgets.tables import table

    numbers = {
        *("step", "bytes", "new", "age", "metric", "most"),
        *("spot there", "cost", "omniscient", "spot h", "on-demand h", "starts", "late"),
    }
    click.echo(table(heads, lines, numbers=numbers)["text/plain"])


from mlcloud.cli_jobs import jobs as _jobs  # noqa: E402

main.add_command(_jobs)


def _run(command: str, *words: str) -> None:
    from mlcloud.magics import COMMANDS

    answer = COMMANDS[command](list(words))
    if answer is not None:
        click.echo(repr(answer))


if __name__ == "__main__":
    main()
