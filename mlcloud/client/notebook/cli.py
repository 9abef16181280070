"""`mlcloud kernelspec install | list | remove`."""

from __future__ import annotations

from typing import Any

import click


@click.group()
def kernelspec() -> None:
    """Kernels that run a whole notebook in a session."""


@kernelspec.command()
@click.option("--gpu", metavar="NAME:COUNT", help="An accelerator, e.g. A10G:1.")
@click.option("--cpus", type=float, metavar="N", help="vCPUs (1).")
@click.option("--memory", metavar="SIZE", help="A memory limit, e.g. 8GB.")
@click.option("--market", type=click.Choice(["spot", "on-demand"]), help="Default: spot.")
@click.option("--session", metavar="NAME", help="One session for all its notebooks.")
@click.option("--idle-timeout", metavar="DURATION", help="Parked after this long, e.g. 15m.")
@click.option("--budget", metavar="DOLLARS", help="What a session may cost: `5`, `5/day`.")
@click.option(
    "--environment", metavar="FILE", help="Its packages: a requirements file, or `capture`."
)
@click.option("--secret", multiple=True, metavar="NAME[=SOURCE]", help="Several times.")
@click.option("--data", multiple=True, metavar="PATH=URL", help="A bucket's files; several times.")
@click.option("--target", metavar="NAME|URL", help="The cluster; default: the embedded one.")
@click.option(
    "--on-shutdown",
    type=click.Choice(["auto", "park", "close", "keep"]),
    default="auto",
    show_default=True,
    help="What becomes of the session with its kernel; auto: a notebook's is parked.",
)
@click.option("--footers", is_flag=True, help="Show what each cell cost under it.")
@click.option("--name", help="The kernelspec's; by default made of its shape.")
@click.option("--display-name", help="What front ends show.")
@click.option("--user", is_flag=True, help="For this user; default: this Python's environment.")
@click.option("--replace", is_flag=True, help="Also where another kernel has the name.")
def install(
    name: str | None, display_name: str | None, user: bool, replace: bool, **options: Any
) -> None:
    """Install a kernel for notebooks, by the shape of the node they run on."""
    from mlcloud.client.notebook.options import Options
    from mlcloud.client.notebook.specs import install as put

    made = put(Options(**options), name=name, display_name=display_name, user=user, replace=replace)
    click.echo(f"installed {made.name} ({made.display_name}) in {made.folder}")


@kernelspec.command("list")
def list_() -> None:
    """Those that are installed."""
    from mlcloud.client.notebook.specs import specs
    from mlcloud.widgets.tables import table

    lines = [
        (each.name, each.display_name, " ".join(each.options.words()), str(each.folder))
        for each in specs()
    ]
    heads = ("name", "shown as", "options", "folder")
    click.echo(table(heads, lines, numbers=set())["text/plain"])


@kernelspec.command()
@click.argument("name")
def remove(name: str) -> None:
    """Uninstall one; the sessions of its notebooks stay."""
    from mlcloud.client.notebook.specs import remove as take_away

    click.echo(f"removed {take_away(name).folder}")
