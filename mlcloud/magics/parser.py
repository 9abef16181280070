"""The lines of `%%remote` and `%mlcloud`: argparse, with errors that a notebook can show."""

from __future__ import annotations

import argparse
import shlex
from difflib import get_close_matches
from typing import Any, NoReturn

from mlcloud.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse that raises `UsageError`, with a suggestion, instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see `{self.prog} --help`")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpShown

    def read(self, line: str) -> argparse.Namespace:
        found, unknown = self.parse_known_args(split(line))
        if unknown:
            word = unknown[0].partition("=")[0]
            options = [option for option in self._option_string_actions if option.startswith("--")]
            near = get_close_matches(word, options, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(options)}"
            raise UsageError(f"{self.prog}: unknown option {word}{hint}")
        return found


def split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{error} in {line!r}: a quote must be closed") from None


class HelpShown(Exception):
    """--help has printed; nothing is left to do."""


def add_shape(parser: Parser) -> None:
    """The options that say on which node."""
    add = parser.add_argument
    add("--gpu", metavar="NAME:COUNT", help="an accelerator, e.g. A10G:1")
    add("--cpus", type=float, help="vCPUs (1)")
    add("--memory", metavar="SIZE", help="a memory limit, e.g. 8GB")
    market = parser.add_mutually_exclusive_group()
    market.add_argument("--spot", action="store_true", help="a spot node (the default)")
    market.add_argument("--on-demand", action="store_true", help="a node that is not taken back")


def shape(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, as the client takes them."""
    market = "on-demand" if options.on_demand else "spot" if options.spot else None
    found = {"gpu": options.gpu, "cpus": options.cpus, "memory": options.memory, "market": market}
    return {key: value for key, value in found.items() if value is not None}
