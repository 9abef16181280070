"""Where a job with a deadline runs next: wait, spot in a zone, or on demand. Pure: nothing is kept.

    decide(job, progress, history, offers) ──► Decision("spot", "us-west-2b", "…")
       │                                          ▲
       │  View: arrays, one lane a job            │ keep_safe: never past the point of no return
       └────────────► a policy of POLICIES ───────┘

`mlcloud simulate` replays traces through the same policies and the same `keep_safe`, with thousands
of lanes where a live job has one.

**The point of no return.** On-demand can always be had and is never taken away, so a job that has
`work left + changeover ≤ time left` can finish in time whatever spot does. `keep_safe` lets nothing
lead out of that state: a choice is kept only if the worst that can follow until the next decision
leaves the same true. Waiting loses the whole step. A spot node that is taken loses what its
changeover had taken until then, at most min(step, changeover left); work that was done is kept.
A node whose changeover is over loses nothing at all, so a job stays on it to the last.

**auto** weighs what each choice costs from here on, by the value of slack (`slack`) under the run
lengths that were seen so far (`lifetimes`). So it leaves on-demand only for spot that will pay for
the changeover, waits out short outages while slack is plenty and no longer when it is scarce, and
keeps slack for changeovers to come. The others are there to compare with: `uniform-progress` and
`greedy` as in "Can't Be Late" (NSDI'24, https://www.usenix.org/conference/nsdi24/presentation/wu-zhanghao),
and `on-demand`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Literal

import numpy as np
import numpy.typing as npt

from mlcloud.cluster.lifetimes import SHAPE, Bools, Floats, Lifetimes, Sighting, lifetimes
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.slack import SlackTable, slack_table
from mlcloud.errors import NoSuchResources, UsageError
from mlcloud.units import format_seconds, suggest

Places = npt.NDArray[np.intp]
#: Where a lane is: the index of a zone, on spot there, or one of these.
WAIT, ON_DEMAND = -2, -1

_EPSILON_S = 1e-6
_SHARES, _RATIO = (
    64,
    1.02,
)  # of work in the deadline, and of prices: what a live table is rounded to
#: A decision is due this often unless the caller says otherwise: a live job looks every minute.
STEP = timedelta(minutes=1)


@dataclass(frozen=True)
class Job:
    """`work`: hours of computation in all. `deadline`: time for it from its start. `changeover`:
    what every start on a node costs, with what is lost since the last checkpoint. `step`: a
    decision is made at least this often, and at once when a spot node is taken."""

    work: timedelta
    deadline: timedelta
    changeover: timedelta
    step: timedelta = STEP

    def __post_init__(self) -> None:
        none = timedelta(0)
        for name, value in (("work", self.work), ("deadline", self.deadline), ("step", self.step)):
            if value <= none:
                raise UsageError(f"{name} is {format_seconds(value)}: it must be above 0")
        if self.changeover < none:
            raise UsageError(f"changeover is {format_seconds(self.changeover)}: it is 0 or more")
        if self.work > self.deadline:
            raise UsageError(
                f"{format_seconds(self.work)} of work cannot be done in "
                f"{format_seconds(self.deadline)}: allow at least the work and one changeover "
                f"({format_seconds(self.changeover)})"
            )


@dataclass(frozen=True)
class Progress:
    """Where a job stands. `on`: None while it waits, `"on-demand"`, or its spot node's zone.
    `changeover_left`: until its present node works."""

    now: datetime
    deadline: datetime
    work_left: timedelta
    on: str | None = None
    changeover_left: timedelta = timedelta(0)


@dataclass(frozen=True)
class Decision:
    """What to do now, with the reason in words for a user. `zone` is None unless on spot."""

    action: Literal["wait", "spot", "on-demand"]
    zone: str | None
    reason: str


@dataclass(frozen=True)
class View:
    """What a policy sees: N lanes, Z zones; seconds. Prices are relative to each other.

    `up`: whether spot can be had now (a part of `seen`); `where`: a `Places`, never a zone that
    is not up. `table`: of a live job, made for it before (`prepare`).
    """

    job_s: float
    deadline_s: float
    changeover_s: float
    step_s: float
    left_s: Floats
    work_s: Floats
    where: Places
    changeover_left_s: Floats
    seen: Lifetimes
    on_demand_price: float
    spot_prices: Floats
    table: SlackTable | None = None

    @property
    def up(self) -> Bools:
        return self.seen.up


Policy = Callable[[View], Places]


def auto(view: View) -> Places:
    """Ours: the cheapest choice by the value of slack."""
    zone, any_up = _best_zone(view)
    lanes, seen = np.arange(len(zone)), view.seen
    waiting, spot = _table(view).advantages(
        view.left_s,
        view.left_s - view.work_s - view.changeover_left_s,
        mean_up_s=np.where(any_up, seen.mean_up_s()[lanes, zone], seen.mean_up_anywhere_s()),
        mean_down_s=np.where(any_up, seen.mean_gap_s(), seen.mean_outage_s()),
        steady_up=np.where(any_up, seen.steady_up()[lanes, zone], seen.steady_up_anywhere()),
        steady_down=seen.steady_outages(),
        age_s=np.where(any_up, seen.age[lanes, zone], seen.outage_age),
        up=any_up,
        on_spot=view.where >= 0,
        on_demand=view.where == ON_DEMAND,
    )
    take_spot = any_up & (spot <= waiting) & (spot < 0)
    return np.where(take_spot, zone, np.where(waiting < 0, WAIT, ON_DEMAND))


def _table(view: View) -> SlackTable:
    if view.table is not None:
        return view.table
    ratio = view.on_demand_price / max(float(view.spot_prices.min()), 1e-9)
    return slack_table(view.job_s, view.deadline_s, view.changeover_s, view.step_s, round(ratio, 4))


def uniform_progress(view: View) -> Places:
    """Uniform Progress: on demand while progress is behind its share of the elapsed time, on spot
    whenever there is some, but back from on-demand only when two changeovers ahead."""
    done, elapsed = view.job_s - view.work_s, view.deadline_s - view.left_s
    share = view.job_s / view.deadline_s
    behind = done - elapsed * share < -_EPSILON_S
    ahead = done - (elapsed + 2 * view.changeover_s) * share > _EPSILON_S
    zone, any_up = _first_zone(view)
    places = np.where(any_up, zone, np.where(behind, ON_DEMAND, WAIT))
    places = np.where((view.where == ON_DEMAND) & ~(any_up & ahead), ON_DEMAND, places)
    return _safety_net(view, places)


def greedy(view: View) -> Places:
    """Spot or nothing until the safety net; then on-demand to the end."""
    zone, any_up = _first_zone(view)
    return _safety_net(view, np.where(any_up, zone, WAIT))


def on_demand(view: View) -> Places:
    """On demand from the beginning to the end."""
    return np.full(len(view.where), ON_DEMAND, np.intp)


POLICIES: dict[str, Policy] = {
    "auto": auto,
    "uniform-progress": uniform_progress,
    "greedy": greedy,
    "on-demand": on_demand,
}


def policy_named(name: str) -> Policy:
    """One of `POLICIES`. Raises `UsageError` with the nearest."""
    if name not in POLICIES:
        raise UsageError(
            f"unknown policy {name!r}: it is one of {', '.join(POLICIES)}{suggest(name, POLICIES)}"
        )
    return POLICIES[name]


def keep_safe(view: View, places: Places) -> Places:
    """`places`, but on-demand where the choice could make the job late (see above)."""
    need = view.work_s + view.changeover_s  # if it goes on demand later
    staying = (places >= 0) & (places == view.where)
    delay = np.where(staying, view.changeover_left_s, view.changeover_s)
    lost = np.where(places >= 0, np.minimum(view.step_s, delay), view.step_s)
    safe = (places == ON_DEMAND) | (need + lost <= view.left_s + _EPSILON_S)
    safe_places = np.where(safe, places, ON_DEMAND)
    # Where even on-demand would be late, what runs is as quick as a new start, or quicker.
    hopeless = (need > view.left_s + _EPSILON_S) & (view.where >= 0)
    return np.where(hopeless, view.where, safe_places)


def kind_of(job: Job, offers: Iterable[Offer]) -> tuple[float, ...]:
    """What names a live job's table. Its work is measured and its prices move: both are rounded (a
    64th of the deadline, 2 % of their ratio), so that the table stays the same one. Raises as
    `decide`."""
    dear, spot = _prices(offers)
    return _kind(job, dear, min(spot.values(), default=dear))


def prepare(
    job: Job, offers: Iterable[Offer], history: Mapping[str, Sequence[Sighting]] | None = None
) -> SlackTable:
    """The table of a live job, with what its next decision asks of it: some 10 ms of processor
    time, for a thread, where `decide` alone takes 0.5 ms. Raises as `decide`."""
    dear, spot = _prices(offers)
    table = slack_table(*_kind(job, dear, min(spot.values(), default=dear)))
    if spot:
        zones = {zone: (history or {}).get(zone, ()) for zone in sorted(spot)}
        now = datetime.now(timezone.utc)
        rested = Progress(now, now + job.deadline, job.work)
        auto(_view(job, rested, lifetimes(zones, now), WAIT, dear, spot, table))
    return table


def _kind(job: Job, dear: float, cheapest: float) -> tuple[float, float, float, float, float]:
    deadline = job.deadline.total_seconds()
    share = math.floor(_SHARES * job.work.total_seconds() / deadline) / _SHARES
    ratio = dear / max(cheapest, 1e-9)
    rounded = _RATIO ** round(math.log(max(ratio, 1e-9)) / math.log(_RATIO))
    pace = (job.changeover.total_seconds(), job.step.total_seconds())
    return (share * deadline, deadline, *pace, round(rounded, 4))


def _view(
    job: Job,
    progress: Progress,
    seen: Lifetimes,
    where: int,
    dear: float,
    spot: Mapping[str, float],
    table: SlackTable,
) -> View:
    """One lane."""
    left = (progress.deadline - progress.now).total_seconds()
    changeover = progress.changeover_left.total_seconds() if where != WAIT else 0.0
    return View(
        job_s=job.work.total_seconds(),
        deadline_s=job.deadline.total_seconds(),
        changeover_s=job.changeover.total_seconds(),
        step_s=job.step.total_seconds(),
        left_s=np.array([left]),
        work_s=np.array([progress.work_left.total_seconds()]),
        where=np.array([where], np.intp),
        changeover_left_s=np.array([changeover]),
        seen=seen,
        on_demand_price=dear,
        spot_prices=np.array([spot[zone] for zone in sorted(spot)]),
        table=table,
    )


def decide(
    job: Job,
    progress: Progress,
    history: Mapping[str, Sequence[Sighting]],
    offers: Iterable[Offer],
    policy: str = "auto",
) -> Decision:
    """What a live job does now. Zones are those of `offers` for spot that `history` does not rule
    out; one without sightings is worth a try. Call it again after `job.step` at the latest, and at
    once when the node is lost.

    The first call for a kind of job takes some 10 ms, unless its table was made before (`prepare`);
    further ones 0.5 ms, since what they may ask of it is solved meanwhile, in a thread.
    Raises `NoSuchResources` where no offer is on demand: nothing could promise a deadline then.
    """
    dear, spot = _prices(offers)
    zones = sorted(spot)
    if progress.on not in (None, "on-demand", *zones):
        raise UsageError(
            f"the job is on spot in {progress.on!r}, and the offers have none there: "
            f"{', '.join(zones) or 'no zone at all'}{suggest(str(progress.on), zones)}"
        )
    seen = lifetimes({zone: history.get(zone, ()) for zone in zones}, progress.now)
    where = _place(progress.on, zones)
    if where >= 0 and not seen.up[0, where]:
        where = WAIT  # it was taken
    table = slack_table(*_kind(job, dear, min(spot.values(), default=dear)))
    view = _view(job, progress, seen, where, dear, spot, table)
    if progress.work_left <= timedelta(0):
        return Decision("wait", None, "the work is done")
    wished = policy_named(policy)(view) if zones else on_demand(view)
    if zones and policy == "auto":
        table.ahead()
    place = int(keep_safe(view, wished)[0])
    return _told(place, int(wished[0]), zones, view)


def _told(place: int, wished: int, zones: Sequence[str], view: View) -> Decision:
    """The decision, with its reason."""
    slack = float(view.left_s[0] - view.work_s[0])
    spare = f"{format_seconds(round(slack))} of slack"
    if place == WAIT:
        return Decision("wait", None, f"no spot now; with {spare}, waiting is cheaper")
    if place >= 0:
        mean = float(view.seen.mean_up_s()[0, place])
        return Decision(
            "spot", zones[place], f"spot lasts {format_seconds(round(mean))} there on average"
        )
    if wished != ON_DEMAND:
        return Decision("on-demand", None, f"with {spare}, anything else could make it late")
    return Decision("on-demand", None, f"with {spare}, on-demand is the cheapest way to be in time")


def _prices(offers: Iterable[Offer]) -> tuple[float, dict[str, float]]:
    """The lowest price on demand, and of spot in each zone."""
    dear: list[float] = []
    spot: dict[str, float] = {}
    for offer in offers:
        price = float(offer.usd_per_hour)
        if offer.market == "spot":
            spot[offer.zone] = min(price, spot.get(offer.zone, price))
        else:
            dear.append(price)
    if not dear:
        raise NoSuchResources(
            "a deadline needs an offer on demand to fall back to, and there is none: allow "
            "on-demand, or leave the deadline out"
        )
    return min(dear), spot


def _place(on: str | None, zones: Sequence[str]) -> int:
    if on is None:
        return WAIT
    return ON_DEMAND if on == "on-demand" else zones.index(on)


def _best_zone(view: View) -> tuple[Places, Bools]:
    """The zone to be on spot in, and whether any has spot: the present one as long as it lasts,
    else the one with the lowest price for the work expected of it."""
    goes_on = view.seen.mean_up_s() + view.seen.age / (SHAPE - 1)
    dearness = view.spot_prices * (1 + view.changeover_s / goes_on)
    zone = np.where(view.up, dearness, np.inf).argmin(axis=1)
    return np.where(view.where >= 0, view.where, zone), np.asarray(view.up.any(axis=1))


def _first_zone(view: View) -> tuple[Places, Bools]:
    """The present zone, else the first that has spot."""
    zone = np.where(view.where >= 0, view.where, view.up.argmax(axis=1))
    return zone, np.asarray(view.up.any(axis=1))


def _safety_net(view: View, places: Places) -> Places:
    """The paper's, as its authors' simulator has it: in whole steps, and two changeovers early
    unless the job is on spot."""
    left = np.floor(view.left_s / view.step_s + 1e-9)

    def needs(changeovers: int) -> Floats:
        need = (view.work_s + changeovers * view.changeover_s) / view.step_s
        return np.ceil(need - 1e-9)

    places = np.where((needs(2) >= left) & (view.where < 0), ON_DEMAND, places)
    warm = (view.where >= 0) & (view.changeover_left_s < _EPSILON_S)
    return np.where(needs(1) >= left, np.where(warm, view.where, ON_DEMAND), places)
