"""The process a host starts: `python -m mlcloud.kernel.launch -f CONNECTION`, an ipykernel with our
parts.

It is IPython's own kernel application; what differs is the kernel class (names, snapshots, notices:
`kernel.py`), the streams (`streams.py`), and the way out for iopub (`outlet.py`): nothing that a
cell prints is lost.
"""

from __future__ import annotations

from typing import Any

from ipykernel.kernelapp import IPKernelApp
from traitlets import Unicode

from mlcloud.kernel.kernel import RemoteKernel
from mlcloud.kernel.outlet import redirect
from mlcloud.kernel.streams import AdaptiveOutStream

# Quiets ipykernel's own copy of the output on the process's stdout: the journal has it.
QUIET = True


class RemoteKernelApp(IPKernelApp):  # type: ignore[misc]  # ipykernel ships no complete types
    """IPython's kernel application with mlcloud's kernel and streams."""

    kernel_class = RemoteKernel
    outstream_class = f"{AdaptiveOutStream.__module__}.{AdaptiveOutStream.__name__}"
    quiet = QUIET
    store_url = Unicode("", help="Where snapshots and checkpoints go.").tag(config=True)
    output_socket = Unicode("", help="Where iopub messages are written.").tag(config=True)
    session_id = Unicode("", help="The mlcloud session this kernel serves.").tag(config=True)

    def init_iopub(self, context: Any) -> None:
        super().init_iopub(context)
        if self.output_socket:
            redirect(self.iopub_thread, self.output_socket)

    def init_kernel(self) -> None:
        super().init_kernel()
        self.kernel.serve(session_id=self.session_id, store_url=self.store_url)


main = RemoteKernelApp.launch_instance

if __name__ == "__main__":
    main()
