"""`mlcloud checkpoints …`: series of checkpoints in a store, from a shell."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from mlcloud.commands.printing import show_table, told

KEY_VARIABLE = "MLCLOUD_ENCRYPTION_KEY"  # a key's file, or the key in base64

_FORMATS = click.Choice(["safetensors", "pt", "dcp"])


@click.group()
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

    with told():
        rows = _checkpoints(store, name).show(step)
    lines = [
        (
            *(each.name, each.kind, "" if each.shape is None else list(each.shape)),
            *("" if each.shape is None else format_bytes(each.bytes), each.value),
        )
        for each in rows
    ]
    show_table(("name", "type", "shape", "bytes", "value"), lines)


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
    show_table(("name", "", "before", "after", "most"), lines)


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
    with told():
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
    with told():
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
