"""What a notebook sets beside its names: random states, options of libraries, IPython's own.

    capture() ─► plain data ─► the snapshot ─► apply()

Only of modules that are loaded; of options only those that differ from their defaults. Environment
variables and credentials are never looked at. What a library no longer knows is passed over.
"""

from __future__ import annotations

import contextlib
import decimal
import importlib
import os
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Plain = dict[str, Any]
_PLAIN = (str, int, float, bool, type(None))


def capture(shell: Any = None, workspace: Path | None = None) -> Plain:
    """All of it, as msgpack can write it."""
    found: Plain = {"python": _python()}
    for module, (get, _) in _LIBRARIES.items():
        if module in sys.modules:
            with contextlib.suppress(Exception):  # a library half imported, or of another version
                found[module] = get(sys.modules[module])
    if shell is not None:
        found["ipython"] = _ipython(shell)
    here = _folder(workspace)
    if here:
        found["folder"] = here
    return found


def apply(found: Plain, shell: Any = None, workspace: Path | None = None) -> None:
    """Set all of it again."""
    if here := found.get("folder"):
        with contextlib.suppress(OSError):
            os.chdir((workspace or Path.cwd()) / here)
    _apply_python(found.get("python", {}))
    for module, (_, put) in _LIBRARIES.items():
        if module in found:
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                put(importlib.import_module(module), found[module])
    if shell is not None:
        _apply_ipython(shell, found.get("ipython", {}))


def randomness(found: Plain) -> Plain:
    """Only the random states: what a cell that runs again must find."""
    kept: Plain = {"python": {k: v for k, v in found["python"].items() if k == "random"}}
    if "numpy" in found:
        kept["numpy"] = {"random": found["numpy"].get("random")}
    if "torch" in found:
        kept["torch"] = {k: v for k, v in found["torch"].items() if k in ("random", "cuda")}
    return kept


# --- Python ---------------------------------------------------------------------------------------


def _python() -> Plain:
    version, numbers, gauss = random.getstate()
    context = decimal.getcontext()
    return {
        "random": [version, b"".join(n.to_bytes(4, "little") for n in numbers), gauss],
        "decimal": [context.prec, context.rounding],
        "recursion": sys.getrecursionlimit(),
        "path": [entry for entry in sys.path if entry not in _PATH],
    }


_PATH = list(sys.path)  # before any cell


def _apply_python(found: Plain) -> None:
    if state := found.get("random"):
        version, packed, gauss = state
        numbers = [int.from_bytes(packed[i : i + 4], "little") for i in range(0, len(packed), 4)]
        random.setstate((version, tuple(numbers), gauss))
    if "decimal" in found:
        decimal.getcontext().prec, decimal.getcontext().rounding = found["decimal"]
    if "recursion" in found:
        sys.setrecursionlimit(found["recursion"])
    sys.path += [entry for entry in found.get("path", ()) if entry not in sys.path]


# --- libraries ------------------------------------------------------------------------------------


def _numpy(numpy: Any) -> Plain:
    options = {k: v for k, v in numpy.get_printoptions().items() if isinstance(v, _PLAIN)}
    if "numpy.random" not in sys.modules:
        return {"options": options}
    kind, keys, place, has_gauss, gauss = numpy.random.get_state()
    state = [kind, keys.astype("<u4").tobytes(), int(place), int(has_gauss), float(gauss)]
    return {"options": options, "random": state}


def _apply_numpy(numpy: Any, found: Plain) -> None:
    if state := found.get("random"):
        kind, keys, *rest = state
        numpy.random.set_state((kind, numpy.frombuffer(keys, "<u4"), *rest))
    numpy.set_printoptions(**found.get("options", {}))


def _torch(torch: Any) -> Plain:
    found = {
        "random": torch.get_rng_state().numpy().tobytes(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
    }
    if torch.cuda.is_initialized():
        found["cuda"] = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    return found


def _apply_torch(torch: Any, found: Plain) -> None:
    def state(packed: bytes) -> Any:
        return torch.frombuffer(bytearray(packed), dtype=torch.uint8)

    if "random" in found:
        torch.set_rng_state(state(found["random"]))
    if "cuda" in found and torch.cuda.is_available():
        for device, packed in enumerate(found["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state(packed), device)
    if "dtype" in found:
        torch.set_default_dtype(getattr(torch, found["dtype"]))
        torch.set_grad_enabled(found["grad"])
        torch.use_deterministic_algorithms(found["deterministic"])
        torch.set_float32_matmul_precision(found["precision"])


def _pandas(pandas: Any) -> Plain:
    config = importlib.import_module("pandas._config.config")
    changed: Plain = {}
    for name, option in config._registered_options.items():
        if name in config._deprecated_options:
            continue
        value = config.get_option(name)
        if isinstance(value, _PLAIN) and value != option.defval:
            changed[name] = value
    return changed


def _apply_pandas(pandas: Any, found: Plain) -> None:
    for name, value in found.items():
        with contextlib.suppress(Exception):
            pandas.set_option(name, value)


def _matplotlib(matplotlib: Any) -> Plain:
    default = matplotlib.rcParamsDefault
    changed: Plain = {}
    for name in default:
        value = dict.__getitem__(matplotlib.rcParams, name)
        if name == "axes.prop_cycle":
            if value != default[name]:
                changed[name] = {key: list(values) for key, values in value.by_key().items()}
        elif name.startswith("backend") or value == default.get(name):
            continue
        elif isinstance(value, _PLAIN) or _is_plain_list(value):
            changed[name] = value
    return changed


def _apply_matplotlib(matplotlib: Any, found: Plain) -> None:
    for name, value in found.items():
        with contextlib.suppress(Exception):
            if name == "axes.prop_cycle":
                value = importlib.import_module("cycler").cycler(**value)
            matplotlib.rcParams[name] = value


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, _PLAIN) for each in value)


_LIBRARIES: dict[str, tuple[Callable[[Any], Plain], Callable[[Any, Plain], None]]] = {
    "numpy": (_numpy, _apply_numpy),
    "torch": (_torch, _apply_torch),
    "pandas": (_pandas, _apply_pandas),
    "matplotlib": (_matplotlib, _apply_matplotlib),
}


# --- IPython --------------------------------------------------------------------------------------


def _ipython(shell: Any) -> Plain:
    found: Plain = {
        "extensions": sorted(shell.extension_manager.loaded - {"storemagic"}),
        "precision": shell.display_formatter.formatters["text/plain"].float_precision,
        "interactivity": shell.ast_node_interactivity,
        "aliases": [list(alias) for alias in shell.alias_manager.user_aliases],
    }
    inline = sys.modules.get("matplotlib_inline.config")
    if inline is not None:
        config = inline.InlineBackend.instance(parent=shell)
        found["inline"] = {
            "figure_formats": sorted(config.figure_formats),
            "close_figures": config.close_figures,
            "rc": {k: v for k, v in config.rc.items() if isinstance(v, _PLAIN)},
        }
        if "matplotlib.pyplot" in sys.modules:
            found["backend"] = sys.modules["matplotlib"].get_backend()
    return found


def _apply_ipython(shell: Any, found: Plain) -> None:
    for extension in found.get("extensions", ()):
        with contextlib.suppress(Exception):  # it is not installed here
            shell.extension_manager.load_extension(extension)
    if "interactivity" in found:
        shell.ast_node_interactivity = found["interactivity"]
    if found.get("precision"):
        shell.display_formatter.formatters["text/plain"].float_precision = found["precision"]
    for name, command in found.get("aliases", ()):
        with contextlib.suppress(Exception):
            shell.alias_manager.soft_define_alias(name, command)
    if "inline" in found:
        with contextlib.suppress(Exception):
            module = importlib.import_module("matplotlib_inline.config")
            config = module.InlineBackend.instance(parent=shell)
            config.figure_formats = set(found["inline"]["figure_formats"])
            config.close_figures = found["inline"]["close_figures"]
            config.rc = found["inline"]["rc"]
            if "inline" in found.get("backend", ""):
                shell.enable_matplotlib("inline")


def _folder(workspace: Path | None) -> str:
    """Where in its workspace the kernel is; nothing, where it has left it."""
    if workspace is None:
        return ""
    with contextlib.suppress(OSError, ValueError):
        inside = Path.cwd().resolve().relative_to(workspace.resolve())
        return "" if str(inside) == "." else str(inside)
    return ""
