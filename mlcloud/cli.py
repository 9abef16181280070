"""`mlcloud …` in a shell: the same calls as in Python and as `%mlcloud`."""

from __future__ import annotations

import sys
from typing import Any

import click

from mlcloud import __version__
from mlcloud.errors import MLCloudError


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
def up() -> None:
    """Start the embedded cluster, or find the running one."""
    _run("up")


@main.command()
def down() -> None:
    """End the embedded cluster and everything it runs; sessions stay in the store."""
    _run("down")


@main.command()
def status() -> None:
    """Nodes, sessions, spending."""
    _run("status")


@main.command()
def sessions() -> None:
    """Every session, its state and what it has cost."""
    _run("sessions")


@main.command()
def cost() -> None:
    """What was spent, and what is being spent per hour."""
    _run("cost")


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


def _run(command: str, *words: str) -> None:
    from mlcloud.magics import COMMANDS

    answer = COMMANDS[command](list(words))
    if answer is not None:
        click.echo(repr(answer))


if __name__ == "__main__":
    main()
