"""What runs first on a head: it keeps the gateway running, as the client does on your computer.

    keeper ── python -m mlcloud.gateway ─┬─ ended by `down` or idleness (status 0): so does this
                                         └─ killed or crashed: started again, later each time

A machine that boots again starts its keeper again (`bootstrap.deserted`), until that is done.
Every node of the cluster ends itself when no gateway answers for long (`agent`), and a keeper that
is done ends the head's own machine where that is rented (`self_end`): at once, or where it gave up
a while later, so that `up` can read why. So nothing is left behind for ever. Standard library
alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mlcloud.cluster import onlyhere, self_end
from mlcloud.cluster.headspec import HeadSpec
from mlcloud.cluster.notices.clouds import ENDPOINTS
from mlcloud.errors import CloudRefused
from mlcloud.processes import become_subreaper, end_descendants

FAST_S = 30.0  # a gateway that ran shorter than this came to nothing
FAILURES, PAUSE_S = 5, 1.0
TOLD_S = 600.0  # longer than `up` waits for a gateway
END_AGAIN_S = 60.0


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: _end())
    become_subreaper()
    home = Path(os.environ["MLCLOUD_HOME"])
    spec = HeadSpec.read(home / "head.json")
    _begin(spec, home)
    failures = 0
    while failures < FAILURES:
        began = time.monotonic()
        with open(home / "gateway.log", "ab") as log:
            gateway = subprocess.Popen(
                [sys.executable, "-m", "mlcloud.gateway"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home,
                # The gateway is a driver of Ray's, which listens too.
                env={**os.environ, **onlyhere.preload(spec.address, home, os.environ)},
            )
        status = gateway.wait()
        if status == 0:
            _give_back(spec, home)
            break
        print(f"the gateway ended with status {status}", flush=True)
        failures = 1 if time.monotonic() - began > FAST_S else failures + 1
        time.sleep(PAUSE_S * failures)
    else:
        (home / "failed").write_text(_last_words(home / "gateway.log"))
        print("the gateway does not come up: giving up", flush=True)
        (home / "pid").unlink(missing_ok=True)  # `up` may try once more
        if spec.cloud in ENDPOINTS:
            time.sleep(TOLD_S)
        if (home / "pid").exists():
            return 0
    (home / "start.sh").unlink(missing_ok=True)  # not at the next boot
    end_descendants()
    while spec.cloud in ENDPOINTS:
        with contextlib.suppress(CloudRefused):  # which is in the log
            self_end.end(spec.cloud, log=_log)
        time.sleep(END_AGAIN_S)
    return 0


def _begin(spec: HeadSpec, home: Path) -> None:
    """A head that was made anew knows nothing of the nodes of the one before, and they nothing of
    it: where nobody else would end them, it does."""
    if spec.cloud == "kubernetes" and not (home / "cloud").exists():
        _asked(spec, home, "clear")


def _give_back(spec: HeadSpec, home: Path) -> None:
    """Where a head that has ended would be started again, it says that it has."""
    if spec.cloud == "kubernetes":
        _asked(spec, home, "release")


def _asked(spec: HeadSpec, home: Path, what: str) -> None:
    from mlcloud.cluster.clouds import make
    from mlcloud.errors import MLCloudError

    try:
        cloud = make(spec.cloud, home, spec.settings, cluster_id=spec.cluster_id, home=home)
        getattr(cloud, what)()
    except MLCloudError as error:
        print(f"{what}: {error}", flush=True)


def _log(text: str) -> None:
    print(text, flush=True)


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "the gateway ended without a word"


def _end() -> None:
    end_descendants()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
