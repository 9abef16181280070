"""`mlcloud prices` and `mlcloud simulate`: what is sold, and what a policy would have paid."""

from __future__ import annotations

import sys
from typing import Any

import click

from mlcloud.commands.printing import show_table


@click.group(invoke_without_command=True)
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


@click.command()
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
    show_table(HEADS, lines(found))
