"""When a state is saved, and that nothing is lost where saving is put off, or broken off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcloud.kernel.mentions import mentions
from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.pace import FREE_S, IDLE_S, SOON_S, Pace, together
from mlcloud.kernel.recipes import CellRun
from mlcloud.kernel.snapshot import Snapshots
from mlcloud.kernel.tracking import ALL
from mlcloud.store import Store
from mlcloud.values.messages import Return, Shipment
from mlcloud.values.scan import Stopped
from tests.values.pair import execute, notebook


def test_saving_takes_its_share_and_no_more() -> None:
    pace = Pace(0.05)
    assert pace.affords(FREE_S)
    assert not pace.affords(0.1)
    pace.ran(4.0)
    assert pace.affords(0.19)
    pace.delayed(0.19)
    assert not pace.affords(0.05)
    pace.delayed(FREE_S)  # what takes no time is free
    pace.ran(1.0)
    assert pace.affords(0.05)


def test_every_boundary_counts_on_a_node_that_goes_away_and_where_the_user_says_so() -> None:
    assert Pace(1).affords(60)
    pace = Pace(0.05)
    pace.hurry = True
    assert pace.affords(60)


def test_what_takes_long_waits_until_nothing_runs() -> None:
    assert Pace.wait(FREE_S) == SOON_S
    assert Pace.wait(1.0) == IDLE_S


def test_cells_that_are_saved_together_are_one_cell() -> None:
    first = CellRun(3, "a", "x = 1", "x = 1", seconds=1.0, shipment={"wire": {}})
    second = CellRun(4, "b", "%cd /", "cd('/')", seconds=2.0, effects=["wrote to /tmp/x"])
    one = together([first, second])
    assert one is not None
    assert (one.step, one.execution_id, one.seconds) == (4, "b", 3.0)
    assert one.transformed == "x = 1\ncd('/')"
    assert one.shipment == {"wire": {}}
    assert one.effects == ["wrote to /tmp/x"]
    assert together([]) is None


class Session:
    """A session and a notebook that has seen all its returns."""

    def __init__(self, root: Path) -> None:
        self.store = Store(str(root))
        self.side = RemoteSide(notebook(), cheap_s=0.0)
        self.snapshots = Snapshots(self.store, self.side)
        self.known: dict[str, int] = {}

    def cell(self, code: str, **wanted: Any) -> Return:
        binds = [name for name in mentions(code) if f"{name} =" in code]
        wanted = {"max_return": 20_000, **wanted}
        shipment = Shipment(
            known=dict(self.known), reads=sorted(mentions(code)), binds=binds, **wanted
        )
        self.side.load(shipment)
        execute(code, self.side.namespace)
        back = self.side.collect(shipment, mentions(code))
        self.known |= back.versions
        return back

    def back(self, body: dict[str, Any]) -> dict[str, Any]:
        side = RemoteSide(notebook())
        Snapshots(self.store, side).restore(body).end()
        return side.namespace


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


def test_what_stays_is_not_looked_at_before_the_cell_ends(session: Session) -> None:
    session.cell("big = [[i] for i in range(20_000)]; inner = big[5]; small = [1]")
    session.snapshots.take()
    back = session.cell("big.append(1); small.append(2)")
    assert [info.name for info in back.remote] == ["big"]
    assert [group.names for group in back.groups] == [["small"]]
    assert session.side.pending > 40_000
    assert session.side.cost > 0.002
    there = session.back(session.snapshots.take())
    assert there["big"][-1] == 1
    assert there["big"][5] is there["inner"]
    assert session.side.pending == 0


def test_a_new_value_of_a_large_one_comes_back(session: Session) -> None:
    assert session.cell("x = list(range(20_000))").remote[0].why == (
        "over 20,000 bytes, more than --max-return"
    )
    back = session.cell("x = 5")
    assert [group.names for group in back.groups] == [["x"]]
    back = session.cell("x = list(range(20_000))")
    assert [info.name for info in back.remote] == ["x"]
    there = session.back(session.snapshots.take())
    assert there["x"] == list(range(20_000))


def test_all_of_a_large_value_comes_back_where_it_is_asked_for(session: Session) -> None:
    back = session.cell("x = list(range(20_000))", out=["x"])
    assert [group.names for group in back.groups] == [["x"]]


def test_a_small_part_of_what_stays_stays_with_it(session: Session) -> None:
    session.cell("big = [[i] for i in range(20_000)]")
    session.cell("part = big[7]")
    session.snapshots.take()
    back = session.cell("part.append(8)")
    assert [info.name for info in back.remote] == ["part"]
    assert "shares objects with `big`" in back.remote[0].why
    back = session.cell("big[7].append(9)")
    assert {"big", "part"} >= {info.name for info in back.remote} >= {"big"}
    there = session.back(session.snapshots.take())
    assert there["part"] == [7, 8, 9]
    assert there["part"] is there["big"][7]


def test_a_reason_is_told_again(session: Session) -> None:
    assert "_io" in session.cell("import io, os\nfile = open(os.devnull)").remote[0].why
    session.snapshots.take()
    assert "_io" in session.cell("file.name").remote[0].why


def test_saving_is_broken_off_and_made_up_for(session: Session) -> None:
    session.cell("a = [[i] for i in range(300_000)]; b = a[3]; c = [1]")
    session.snapshots.take()
    session.cell("a[3].append(1); a.pop(); c.append(2)")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with pytest.raises(Stopped):
        session.snapshots.begin(stop=stop)
    assert asked == 4
    session.cell("c.append(3); a[3] = None")  # `b` is no part of it any more
    there = session.back(session.snapshots.take())
    assert (there["b"], there["c"], len(there["a"])) == ([3, 1], [1, 2, 3], 299_999)


def test_a_value_found_changed_only_later_is_told_later(session: Session) -> None:
    # A small value that no name of the cell leads to, as far as is known before all is looked at.
    session.cell("big = [[i] for i in range(20_000)]")
    session.cell("small = [0]\nbig.append(small)")
    session.cell("big[-1].append(1)")
    there = session.back(session.snapshots.take())
    assert there["small"] == [0, 1]
    back = session.cell("other = 1")
    assert "small" in {info.name for info in back.remote}


def test_a_dropped_value_is_freed_where_its_state_is_not_saved_yet(session: Session) -> None:
    import gc
    import weakref

    session.cell("import numpy as np\nclass Array(np.ndarray): pass")
    session.side.namespace["x"] = np.zeros(3_000_000).view(session.side.namespace["Array"])
    seen = weakref.ref(session.side.namespace["x"])
    session.side.look(ALL)
    session.cell("x = None")
    gc.collect()
    assert seen() is None
