"""A cloud that nobody uses costs no import."""

from __future__ import annotations

import subprocess
import sys


def test_the_clouds_import_no_sdk_until_they_are_asked() -> None:
    code = (
        "import sys\n"
        "import mlcloud.cluster.clouds.gcp, mlcloud.cluster.clouds.azure\n"
        "import mlcloud.cluster.clouds.kubernetes\n"
        "print([m for m in ('ray', 'google.auth', 'requests', 'azure.core', 'azure.identity',"
        " 'kubernetes') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
