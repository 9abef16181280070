"""What could be saved, and the arithmetic of it: from what was measured and billed here.

    usage of executions ─┐
    ledger, offers ──────┼─► Facts ─► advise() ─► [Advice, …]  the biggest saving first
    leftovers, settings ─┘

Nothing is asked of anybody here: whoever calls gathers the facts (`gateway/advising.py`). The
kinds of advice are a module each, and each is a function of the facts:

    rightsizing   offers that hold what was measured and cost less
    idle          sessions to park, shorter idle timeouts, nodes and spares that nobody uses
    market        spot against on-demand, by the preemptions that happened here
    commitment    a year's savings plan, or a machine of one's own, against the history's hours
    leftover      what clusters left behind in the cloud

A saving is what would not have been paid for the same work, and is told only where it is above
zero. "A month" is the history's pace: what was seen, in 730.5 hours (`Facts.monthly`); of a history
shorter than a day it is taken that it was a day's work.
"""

from mlcloud.cost.advice.advise import advise
from mlcloud.cost.advice.facts import Facts, SessionFacts
from mlcloud.cost.advice.working import Advice, Working, evaluate

__all__ = ["Advice", "Facts", "SessionFacts", "Working", "advise", "evaluate"]
