"""The remote kernel's IPython: a cell's code is named as in its notebook, and errors are shown so.

    Cell (from the notebook)  file, number, head ─► CellCompiler    "Cell In[7], line 3"
                              xmode, colors, pdb ─► Shell           as set over there
    an error in the cell      ─► Shell.showtraceback ─► tracebacks: without the frames of IPython
                                                        and mlcloud, bounded, ExceptionGroups too

The notebook chooses the name of a cell's code, so that both sides know the same lines by the same
name: a function that the cell defines and that comes back is shown there as if it had been made
there.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import IPython
from ipykernel.compiler import XCachingCompiler
from ipykernel.zmqshell import ZMQInteractiveShell as KernelShell
from traitlets import Type

from mlcloud import parsing
from mlcloud.kernel import tracebacks
from mlcloud.kernel.threads import Publisher

_OLD_SCHEMES = {"nocolor": "NoColor", "linux": "Linux", "lightbg": "LightBG", "neutral": "Neutral"}


@dataclass(frozen=True)
class Cell:
    """Where a cell stands in its notebook. `head`: what comes before the code, as comments.

    `own`: this is the notebook's one kernel, so that the cell's number is that of its `Out`.
    """

    file: str
    number: int | None = None
    head: str = ""
    labels: dict[str, int] = field(default_factory=dict)  # numbers of earlier cells, by file
    xmode: str | None = None
    colors: str | None = None
    pdb: bool = False
    own: bool = False

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Cell:
        known = {name: wire[name] for name in cls.__dataclass_fields__ if name in wire}
        return cls(**known)


class CellCompiler(XCachingCompiler):  # type: ignore[misc]  # ipykernel ships no complete types
    """Names the code of the cell that comes next, and counts its lines, as its notebook does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cell: Cell | None = None
        self._next = False
        self._naming: str | None = None

    def expect(self, cell: Cell | None) -> None:
        """The cell that runs next; None for code that is in no notebook."""
        self._cell, self._next = cell, cell is not None
        if cell is not None:
            self.learn(cell.labels)

    def learn(self, labels: dict[str, int]) -> None:
        """Cell numbers by the file names of their code."""
        self._filename_map.update(labels)

    @property
    def labels(self) -> dict[str, int]:
        return dict(self._filename_map)

    def get_code_name(self, raw_code: str, code: str, number: int) -> str:
        name: str = self._naming or super().get_code_name(raw_code, code, number)
        return name

    def cache(self, transformed_code: str, number: int = 0, raw_code: str | None = None) -> str:
        cell, first = self._cell, self._next
        self._next = False
        if cell is None:
            name: str = super().cache(transformed_code, number, raw_code)
            return name
        if not first:  # a cell that the cell runs (%%capture): it has a name of its own
            name = super().cache(transformed_code, cell.number or number, raw_code)
            return name
        self._naming = cell.file
        try:
            name = super().cache(cell.head + transformed_code, cell.number or 0, raw_code)
        finally:
            self._naming = None
        if cell.number is None:  # it has a name, and no number
            self._filename_map.pop(name, None)
        return name

    def ast_parse(self, source: str, filename: str = "<unknown>", symbol: str = "exec") -> ast.AST:
        cell = self._cell
        head = cell.head if cell is not None and filename == cell.file else ""
        code = "\n" * head.count("\n") + source
        make = super().ast_parse
        tree: ast.AST = parsing.undisturbed(lambda: make(code, filename, symbol))
        return tree


class Shell(KernelShell):  # type: ignore[misc]  # ipykernel ships no complete types
    """IPython's shell for kernels, with `CellCompiler`, and tracebacks as described above.

    `failed` is the last error that was shown, or that ended a cell, since `begin`.
    """

    display_pub_class = Type(Publisher)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "compiler_class": CellCompiler})
        self.failed: BaseException | None = None
        self._looks: tuple[Any, ...] = (None, None, False)
        self.ran: str | None = None  # the cell's code as IPython transformed it, since `begin`
        self._transformed: tuple[str, str] | None = None
        self._awaits: tuple[Any, bool] | None = None
        self.events.register("post_run_cell", self._note_result)
        # The notebook raises SystemExit again, and so says this itself.
        warnings.filterwarnings("ignore", message="To exit: use 'exit', 'quit', or Ctrl-D.")

    def begin(self, cell: Cell | None) -> None:
        """A cell of a notebook runs next (None: code without one)."""
        self.failed = self.ran = self._transformed = self._awaits = None
        self._last_traceback = None
        self.compile.expect(cell)
        if cell is not None and cell.own and cell.number is not None:
            self.execution_count = cell.number
        if cell is not None and (looks := (cell.xmode, cell.colors, cell.pdb)) != self._looks:
            # Only where the notebook changed it: `%xmode` in a remote cell holds until then.
            self._looks = looks
            self._look(*looks)

    def _look(self, xmode: str | None, colors: str | None, pdb: bool) -> None:
        self.call_pdb = pdb
        if colors is not None:
            if IPython.version_info < (9,):
                colors = _OLD_SCHEMES.get(colors.lower(), colors)
            # A theme that this IPython does not have: its own stays.
            with contextlib.suppress(Exception):
                self.run_line_magic("colors", colors)
        if xmode in self.InteractiveTB.valid_modes:
            self.InteractiveTB.set_mode(mode=xmode)

    @property
    def can_debug(self) -> bool:
        """Whether there is an error that a debugger can look at."""
        return getattr(sys, "last_traceback", None) is not None

    def _note_result(self, result: Any) -> None:
        error = result.error_before_exec or result.error_in_exec
        if error is None:
            return
        self.failed = error
        try:
            str(error)
        except Exception:  # ipykernel would fail at it, and the cell have no reply
            text = tracebacks.text_of(error)
            result.error_in_exec = type(type(error).__name__, (Exception,), {})(text)

    def render(self, error: BaseException) -> list[str]:
        """The lines of an error's traceback, in the mode and colours that are set."""
        with tracebacks.shortened(error):
            if tracebacks.holds_group(error):
                lines = tracebacks.group_lines(error, self)
            else:
                lines = self.InteractiveTB.structured_traceback(
                    type(error), error, error.__traceback__, tb_offset=0
                )
        return tracebacks.bounded(lines)

    # --- what IPython calls -----------------------------------------------------------------------

    # ipykernel asks both of these about a cell, and `run_cell` asks again.

    def transform_cell(self, raw_cell: str) -> str:
        known, self._transformed = self._transformed, None
        if known is not None and known[0] == raw_cell:
            return known[1]
        transformed: str = super().transform_cell(raw_cell)
        self._transformed = raw_cell, transformed
        self.ran = transformed if self.ran is None else self.ran
        return transformed

    def should_run_async(self, raw_cell: str, **more: Any) -> bool:
        asked = raw_cell, more.get("transformed_cell"), more.get("preprocessing_exc_tuple")
        known, self._awaits = self._awaits, None
        if known is not None and known[0] == asked:
            return known[1]
        awaits: bool = super().should_run_async(raw_cell, **more)
        self._awaits = asked, awaits
        return awaits

    def showtraceback(
        self,
        exc_tuple: Any = None,
        filename: str | None = None,
        tb_offset: int | None = None,
        exception_only: bool = False,
        running_compiled_code: bool = False,
    ) -> None:
        try:
            _, error, _ = self._get_exc_info(exc_tuple)
        except ValueError:  # there is none: IPython says so
            super().showtraceback(exc_tuple)
            return
        self.failed = error
        tracebacks.strip(error)
        found = (type(error), error, error.__traceback__)
        own_way = exception_only or isinstance(error, SyntaxError)
        if tracebacks.holds_group(error) and not own_way:
            self._get_exc_info(found)
            self._showtraceback(type(error), error, self.render(error))
            if self.call_pdb:
                self.debugger(force=True)
            return
        with tracebacks.shortened(error):
            # The frames that an offset would skip are gone already.
            found = (type(error), error, error.__traceback__)
            super().showtraceback(found, filename, 0, exception_only, running_compiled_code)
        self._get_exc_info((type(error), error, error.__traceback__))

    def showsyntaxerror(
        self, filename: str | None = None, running_compiled_code: bool = False
    ) -> None:
        _, error, _ = self._get_exc_info()
        self.failed = error
        tracebacks.strip(error)
        sys.last_traceback = error.__traceback__
        if filename and isinstance(error, SyntaxError):
            error.filename = filename
        frames = tracebacks.summary(error.__traceback__) if running_compiled_code else []
        lines = self.SyntaxTB.structured_traceback(type(error), error, frames)
        self._showtraceback(type(error), error, lines)

    def ask_exit(self) -> None:
        """`exit` and `quit`: a session is not ended from inside."""
        print(
            "a session goes on until it is closed (`session.close()`); `%mlcloud park` gives its "
            "node back",
            file=sys.stderr,
        )

    def show_usage_error(self, exc: BaseException) -> None:
        """Nothing: the notebook raises it again, and IPython shows it there."""
        self.failed = exc

    def _showtraceback(self, etype: type, evalue: Any, stb: list[str]) -> None:
        super()._showtraceback(etype, tracebacks.text_of(evalue), tracebacks.bounded(stb))

    @contextlib.contextmanager
    def _tee(self, channel: str) -> Iterator[None]:
        """IPython (9) would keep all that is printed; what is shown is the journal's to keep.

        It also replaces the stream's `write` by a function that leads to the shell, and so would
        every object that holds on to it (a tqdm bar).
        """
        yield
        self.history_manager.outputs.clear()

    def _format_exception_for_storage(self, exception: BaseException, *_: Any) -> dict[str, Any]:
        """What IPython's history keeps of an error. IPython (9.18) renders it all once more."""
        lines: list[str] = self._last_traceback or []
        text = tracebacks.text_of(exception)
        return {"ename": type(exception).__name__, "evalue": text, "traceback": lines}


# ipykernel looks at these parameters before each cell.
KernelShell.run_cell_async.__signature__ = inspect.signature(KernelShell.run_cell_async)

# Libraries ask for this name to know that they are in a notebook (rich, plotly, tqdm).
Shell.__name__ = Shell.__qualname__ = KernelShell.__name__
Shell.__module__ = KernelShell.__module__
