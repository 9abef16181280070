"""Your own machine's price per hour: its power, and what it loses in value while it is used.

    power          watts / 1000 × price of a kWh
    depreciation   (purchase - resale) / (years × 8,766 h × utilisation)

`utilisation` is the share of all hours in which the machine works: what it cost is spread over
those alone, so an idle machine is a dear one. 8,766 h are a year's (365.25 days).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from mlcloud.cluster.offers import Offer
from mlcloud.errors import UsageError
from mlcloud.units import format_usd_per_hour

_HOURS_A_YEAR = Decimal(8766)
_MICRODOLLAR = Decimal("0.000001")

Number = Decimal | int | float | str


@dataclass(frozen=True)
class OwnMachine:
    """A machine that you bought. Money is in US dollars, power in watts while it works."""

    name: str
    watts: Decimal
    price_per_kwh: Decimal
    purchase: Decimal
    years: Decimal
    utilisation: Decimal
    resale: Decimal

    @property
    def power_usd_per_hour(self) -> Decimal:
        return (self.watts / 1000 * self.price_per_kwh).quantize(_MICRODOLLAR)

    @property
    def depreciation_usd_per_hour(self) -> Decimal:
        hours = self.years * _HOURS_A_YEAR * self.utilisation
        return ((self.purchase - self.resale) / hours).quantize(_MICRODOLLAR)

    @property
    def usd_per_hour(self) -> Decimal:
        return self.power_usd_per_hour + self.depreciation_usd_per_hour

    @property
    def arithmetic(self) -> str:
        """How the price comes about, in one line."""
        value = f"${self.purchase:,f}" + (f" - ${self.resale:,f}" if self.resale else "")
        return (
            f"{self.watts:f} W × ${self.price_per_kwh:f}/kWh = "
            f"{format_usd_per_hour(self.power_usd_per_hour)}; "
            f"{value} over {self.years:f} years × {_HOURS_A_YEAR:,f} h × "
            f"{(self.utilisation * 100).normalize():f} % in use = "
            f"{format_usd_per_hour(self.depreciation_usd_per_hour)}; "
            f"together {format_usd_per_hour(self.usd_per_hour)}"
        )

    def __str__(self) -> str:
        return f"{self.name}: {self.arithmetic}"

    def offer(
        self,
        *,
        cpus: float,
        memory_bytes: int,
        accelerator: str | None = None,
        accelerator_count: int = 0,
        as_of: date,
        cloud: str = "ssh",
    ) -> Offer:
        """The machine as an offer: on demand, in a zone of its own name, its price estimated."""
        return Offer(
            cloud=cloud,
            region="own",
            zone=self.name,
            instance_type=self.name,
            cpus=cpus,
            memory_bytes=memory_bytes,
            accelerator=accelerator,
            accelerator_count=accelerator_count,
            market="on-demand",
            usd_per_hour=self.usd_per_hour,
            simulated=False,
            source=f"power and depreciation: {self.arithmetic}",
            as_of=as_of,
            estimated=True,
        )


def own_machine(
    name: str,
    watts: Number,
    price_per_kwh: Number,
    purchase: Number,
    years: Number,
    utilisation: Number = 1,
    *,
    resale: Number = 0,
) -> OwnMachine:
    """What `name` costs an hour: `own_machine("box", 650, "0.30", 4000, 4, 0.5).usd_per_hour`.

    `watts` while it works, `purchase` and `resale` in dollars, `utilisation` in (0 … 1]. Raises
    `UsageError` for a number out of its range.
    """
    numbers = {
        "watts": watts,
        "price_per_kwh": price_per_kwh,
        "purchase": purchase,
        "years": years,
        "utilisation": utilisation,
        "resale": resale,
    }
    made = OwnMachine(name, **{key: _number(name, key, value) for key, value in numbers.items()})
    if made.years == 0 or made.utilisation == 0:
        raise UsageError(f"{name}: years and utilisation must be above 0")
    if made.utilisation > 1:
        raise UsageError(
            f"{name}: utilisation is the share of all hours, above 0 and up to 1, not {utilisation}"
        )
    if made.resale > made.purchase:
        raise UsageError(f"{name}: it cannot be sold for more than it cost ({resale} > {purchase})")
    return made


def _number(name: str, key: str, value: Number) -> Decimal:
    try:
        number = Decimal(str(value))
    except ArithmeticError:
        raise UsageError(f"{name}: {key} is a number, not {value!r}") from None
    if not number.is_finite() or number < 0:
        raise UsageError(f"{name}: {key} is a number from 0, not {value!r}")
    return number
