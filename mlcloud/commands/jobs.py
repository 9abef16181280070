"""`mlcloud jobs …`: the same as `%mlcloud jobs`."""

from __future__ import annotations

import click


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="All that is known, as JSON.")
@click.pass_context
def jobs(context: click.Context, as_json: bool) -> None:
    """Jobs: without a command, the list of them."""
    if context.invoked_subcommand is None:
        _run(*(["--json"] if as_json else []))


@jobs.command()
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="All that is known, as JSON.")
def show(id: str, as_json: bool) -> None:
    """One job."""
    _run("show", id, *(["--json"] if as_json else []))


@jobs.command()
@click.argument("id")
@click.option("--follow", is_flag=True, help="As they come, until its end.")
@click.option("--item", metavar="N", help="Of this item alone.")
def logs(id: str, follow: bool, item: str | None) -> None:
    """What a job printed."""
    _run("logs", id, *["--follow"] * follow, *(["--item", item] if item else []))


@jobs.command()
@click.argument("id")
def cancel(id: str) -> None:
    """Stop a job; results that there are stay."""
    _run("cancel", id)


@jobs.command()
@click.argument("id")
@click.option("--failed", is_flag=True, help="Only the items that failed.")
@click.option("--now", is_flag=True, help="With the packages of today.")
def rerun(id: str, failed: bool, now: bool) -> None:
    """Run a job again, as it was, with the code, data and packages that it had."""
    _run("rerun", id, *["--failed"] * failed, *["--now"] * now)


@jobs.command()
@click.argument("id", nargs=-1, required=True)
def rm(id: tuple[str, ...]) -> None:
    """Forget jobs that are over: results, logs and checkpoints go, what they cost stays."""
    _run("rm", *id)


@jobs.command()
@click.option("--older", required=True, metavar="30d", help="Those that ended so long ago.")
@click.option("--dry", is_flag=True, help="Only tell which.")
def prune(older: str, dry: bool) -> None:
    """Remove jobs that ended long ago."""
    _run("prune", "--older", older, *["--dry"] * dry)


def _run(*words: str) -> None:
    from mlcloud.client.job_commands import run

    answer = run(list(words))
    if answer is not None:
        click.echo(repr(answer))
