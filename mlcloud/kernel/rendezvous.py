"""Where the ranks of a gang are, and the environment by which `torch.distributed` finds them.

The same variables as `torchrun` sets (https://docs.pytorch.org/docs/stable/elastic/run.html), so
`init_process_group()` needs no argument: NCCL for tensors on a GPU, gloo for those of the CPU.

Ray shows each actor its own GPUs only. Ranks of one node that have one GPU each see all of them,
in the order of their local ranks: `torch.cuda.set_device(LOCAL_RANK)` is what everybody writes, and
NCCL wants to see its neighbours.
"""

from __future__ import annotations

import os
import socket
from typing import Any


def place() -> dict[str, Any]:
    """Of the process that calls it: node, address, GPUs."""
    import ray

    context = ray.get_runtime_context()
    return {
        "instance": os.environ.get("RAY_CLOUD_INSTANCE_ID", ""),
        "node_id": context.get_node_id(),
        "ip": (ip := ray.util.get_node_ip_address()),
        "interface": interface(ip),
        "gpus": context.get_accelerator_ids().get("GPU", []),
    }


def free_port(place: dict[str, Any]) -> int:
    with socket.socket() as found:
        found.bind((place["ip"], 0))
        port: int = found.getsockname()[1]
        return port


def variables(places: list[dict[str, Any]], port: int) -> list[dict[str, str]]:
    """Each rank's environment. Notes `local_rank` in the places, which are in order of rank."""
    nodes = list(dict.fromkeys(each["node_id"] for each in places))
    by_node = {node: [each for each in places if each["node_id"] == node] for node in nodes}
    found = []
    for rank, each in enumerate(places):
        local = by_node[each["node_id"]]
        each["local_rank"] = next(n for n, other in enumerate(local) if other is each)
        own = {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(places)),
            "LOCAL_RANK": str(each["local_rank"]),
            "LOCAL_WORLD_SIZE": str(len(local)),
            "NODE_RANK": str(nodes.index(each["node_id"])),
            "GROUP_RANK": str(nodes.index(each["node_id"])),
            "MASTER_ADDR": str(places[0]["ip"]),
            "MASTER_PORT": str(port),
            "MLCLOUD_RANK": str(rank),  # that the cell may change the others and we still know
        }
        if name := each.get("interface"):
            own["GLOO_SOCKET_IFNAME"] = own["NCCL_SOCKET_IFNAME"] = name
        if local[0]["gpus"] and all(len(other["gpus"]) == 1 for other in local):
            own["CUDA_VISIBLE_DEVICES"] = ",".join(str(other["gpus"][0]) for other in local)
        found.append(own)
    return found


def interface(ip: str) -> str:
    """The network card of this address, where it is this machine's: gloo takes the one that the
    host's own name leads to, which need not be reachable."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == ip for each in addresses):
            return name
    return ""
