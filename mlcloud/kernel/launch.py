"""The process a host starts: `python -m mlcloud.kernel.launch -f CONNECTION`, an ipykernel with our
parts.

It is IPython's own kernel application; what differs is the kernel class (names, snapshots, notices:
`kernel.py`), the streams (`streams.py`), and the way out for iopub (`outlet.py`): nothing that a
cell prints is lost.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ipykernel.kernelapp import IPKernelApp
from traitlets import Float, Int, Unicode

from mlcloud.kernel.c_stdio import line_buffer_c
from mlcloud.kernel.inlet import Inlet
from mlcloud.kernel.kernel import RemoteKernel
from mlcloud.kernel.outlet import SOCKET, Outlet, connect
from mlcloud.kernel.ranks import tell_stacks
from mlcloud.kernel.streams import PipedStream

# Quiets ipykernel's own copy of the output on the process's stdout: the journal has it.
QUIET = True


class RemoteKernelApp(IPKernelApp):  # type: ignore[misc]  # ipykernel ships no complete types
    """IPython's kernel application with mlcloud's kernel and streams."""

    kernel_class = RemoteKernel
    outstream_class = f"{PipedStream.__module__}.{PipedStream.__name__}"
    quiet = QUIET
    store_url = Unicode("", help="Where snapshots and checkpoints go.").tag(config=True)
    output_folder = Unicode("", help="Where the host reads what the kernel shows.").tag(config=True)
    output_nonce = Unicode("", help="What the marks in the output begin with.").tag(config=True)
    keep_files = Int(0, help="Bytes of the working directory's files to save.").tag(config=True)
    snapshot_memory = Int(0, help="Bytes for copies of what is being saved.").tag(config=True)
    snapshot_max = Int(0, help="Bytes that a saved state may have; 0: any.").tag(config=True)
    snapshot_overhead = Float(0.05, help="Share of cells' run time for saving.").tag(config=True)
    session_id = Unicode("", help="The mlcloud session this kernel serves.").tag(config=True)

    def init_iopub(self, context: Any) -> None:
        super().init_iopub(context)
        self._streams: list[Any] = []
        self._socket = connect(str(Path(self.output_folder) / SOCKET))
        self._outlet = Outlet(self.iopub_thread, self._socket, self._sync, self._printed)
        PipedStream.outlet = self._outlet

    def init_io(self) -> None:
        PipedStream.folder, PipedStream.nonce = Path(self.output_folder), self.output_nonce.encode()
        super().init_io()
        out, err = self._streams = [sys.stdout, sys.stderr]
        out.other, err.other = err, out
        line_buffer_c()
        tell_stacks(Path(self.output_folder))

    def _sync(self, number: int) -> None:
        for stream in self._streams:
            stream.sync(number)

    def _printed(self) -> bool:
        return any(stream.is_unread for stream in self._streams)

    def init_kernel(self) -> None:
        super().init_kernel()
        self.kernel.serve(
            session_id=self.session_id,
            store_url=self.store_url,
            keep_files=self.keep_files,
            snapshot_memory=self.snapshot_memory,
            snapshot_max=self.snapshot_max,
            snapshot_overhead=self.snapshot_overhead,
            inlet=Inlet(self._socket, self.kernel),
            outlet=self._outlet,
        )


main = RemoteKernelApp.launch_instance

if __name__ == "__main__":
    main()
