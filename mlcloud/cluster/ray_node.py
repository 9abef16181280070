"""`ray start` on the loopback address alone: `python -m mlcloud.cluster.ray_node start …`.

Ray listens on every interface unless its node's address is exactly 127.0.0.1, and its command line
takes that address for a mistake and replaces it by a network card's. The check has a switch for
other systems (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0), which then forbids worker nodes. So the one
function that replaces the address is replaced here, in the process that runs `ray start` and
nowhere else.
"""

from __future__ import annotations

import sys


def main() -> None:
    from ray._private import services
    from ray.scripts import scripts

    services.resolve_ip_for_localhost = lambda host: host
    sys.exit(scripts.main())


if __name__ == "__main__":
    main()
