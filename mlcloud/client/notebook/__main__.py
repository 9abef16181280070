"""`python -m mlcloud.client.notebook -f CONNECTION_FILE …`: what a kernelspec starts."""

from __future__ import annotations

import sys

from mlcloud.client.notebook.kernel import serve
from mlcloud.client.notebook.options import parse

if __name__ == "__main__":
    serve(parse(sys.argv[1:]))
