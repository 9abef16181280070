"""`%%remote` and `%mlcloud`, loaded by `%load_ext mlcloud`.

Only argparse and IPython are imported here; the client comes with the first cell that runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlcloud.magics.commands import COMMANDS, run_command
from mlcloud.magics.remote import remote_parser, run_remote

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(ip: InteractiveShell) -> None:
    """`%load_ext mlcloud`."""
    register: Any = ip.register_magic_function  # its decorator hides its type
    register(run_remote, "cell", "remote")
    register(run_command, "line", "mlcloud")
    from mlcloud.client.completion import Completions

    unload_completions(ip)
    completions = Completions(ip, _options, sorted(COMMANDS))
    completions.install()
    ip.meta["mlcloud_completions"] = completions


def unload_completions(ip: InteractiveShell) -> None:
    installed = ip.meta.pop("mlcloud_completions", None)
    if installed is not None:
        installed.uninstall()


def unload_ipython_extension(ip: InteractiveShell) -> None:
    """`%unload_ext mlcloud`. Sessions go on; only what this added to IPython is taken out."""
    unload_completions(ip)
    manager: Any = ip.magics_manager
    manager.magics["cell"].pop("remote", None)
    manager.magics["line"].pop("mlcloud", None)


def _options() -> dict[str, list[str]]:
    """The options of `%%remote`, and the words that each may be followed by."""
    found = remote_parser()._option_string_actions.items()
    return {
        name: [str(choice) for choice in action.choices or ()]
        for name, action in found
        if name.startswith("--")
    }
