"""What accelerators can do at most, and how much longer the same work takes on a smaller one.

Peak figures of one accelerator, as its vendor's data sheet has them: dense FP16 or BF16 on tensor
(matrix) units, without sparsity, and memory bandwidth. Read in November 2026.

How long work takes elsewhere is bounded, not guessed. Measured is the share `u` of the time in
which some kernel ran on the GPU. The rest of the time, the GPU waited, and a smaller one waits as
long. A kernel takes between as long (it does not fill the GPU: most do not, where the GPU is little
used) and `s` times as long, `s` being the larger of the two ratios of peaks:

    1  ≤  time  ≤  (1 − u) + u × s,      s = max(1, FLOPS ratio, bandwidth ratio)

Savings are counted with the longest time. No speed-up is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlcloud.cost.advice.working import Working, number, short

AS_OF = "2026-11"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"
_NEURON = (
    "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/about-neuron/arch/neuron-hardware"
)
_TPU = "https://cloud.google.com/tpu/docs"


@dataclass(frozen=True)
class Accelerator:
    """Of one: dense TFLOPS, GB/s, and memory in GiB (the least it is sold with). Code for one
    `family` does not run on another."""

    tflops: float
    gb_per_s: float
    memory_gib: float
    source: str
    family: str = "cuda"
    bf16: bool = True


ACCELERATORS = {
    "T4": Accelerator(65, 320, 15, f"{_NVIDIA}/tesla-t4", bf16=False),
    "V100": Accelerator(125, 900, 16, f"{_NVIDIA}/v100", bf16=False),
    "L4": Accelerator(121, 300, 22.35, f"{_NVIDIA}/l4"),
    "A10": Accelerator(125, 600, 22.35, f"{_NVIDIA}/products/a10-gpu"),
    "A10G": Accelerator(
        70,
        600,
        22.35,
        "https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf",
    ),
    "L40": Accelerator(181, 864, 45, f"{_NVIDIA}/l40"),
    "L40S": Accelerator(362, 864, 44.7, f"{_NVIDIA}/l40s"),
    "A100": Accelerator(312, 1555, 40, f"{_NVIDIA}/a100"),
    "A100-40GB": Accelerator(312, 1555, 40, f"{_NVIDIA}/a100"),
    "A100-80GB": Accelerator(312, 1935, 80, f"{_NVIDIA}/a100"),
    "H100": Accelerator(989, 3350, 80, f"{_NVIDIA}/h100"),
    "H200": Accelerator(989, 4800, 140, f"{_NVIDIA}/h200"),
    "B200": Accelerator(2250, 7700, 179, f"{_NVIDIA}/hgx"),
    "RTX-PRO-6000": Accelerator(503, 1597, 95, f"{_NVIDIA}/rtx-pro-6000-blackwell-server-edition"),
    "Inferentia": Accelerator(64, 50, 8, f"{_NEURON}/inferentia.html", "inf1"),
    "Inferentia2": Accelerator(190, 820, 32, f"{_NEURON}/inferentia2.html", "neuron"),
    "Trainium": Accelerator(190, 820, 32, f"{_NEURON}/trainium.html", "neuron"),
    "Trainium2": Accelerator(667, 2900, 96, f"{_NEURON}/trainium2.html", "neuron"),
    "TPU-v5e": Accelerator(197, 819, 16, f"{_TPU}/v5e", "tpu"),
    "TPU-v5p": Accelerator(459, 2765, 95, f"{_TPU}/v5p", "tpu"),
    "TPU-v6e": Accelerator(918, 1640, 32, f"{_TPU}/v6e", "tpu"),
}


def longest(working: Working, used: float, now: str, other: str) -> str | None:
    """How many times as long the work takes at most on `other`, with the lines for it; None where
    the one or the other is not in the table. `used` is the share of the time."""
    here, there = ACCELERATORS.get(now), ACCELERATORS.get(other)
    if here is None or there is None or here.family != there.family:
        return None
    working.fact(
        f"peaks of {now} ({here.source}) and {other} ({there.source}), data sheets of {AS_OF}"
    )
    flops = working.line(
        f"TFLOPS of {now} to {other}", f"{here.tflops:g} ÷ {there.tflops:g}", "×", digits=3
    )
    bandwidth = working.line(
        f"GB/s of {now} to {other}", f"{here.gb_per_s:g} ÷ {there.gb_per_s:g}", "×", digits=3
    )
    slower = max(1.0, float(flops), float(bandwidth))
    share = short(used, 3)
    time = working.line(
        "time at most, if each kernel fills the GPU (and as long as now, if none does)",
        f"(1 − {share}) + {share} × {short(slower, 3)}",
        "×",
        digits=3,
    )
    return number(time)
