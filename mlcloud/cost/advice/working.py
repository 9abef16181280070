"""An advice and its working: lines of arithmetic that are computed from the very text shown.

    working = Working()
    left = working.line("saved an hour", "0.17 − 0.085 × 1.1", "$")   # Decimal("0.0765")
    working.lines                        # ["saved an hour: 0.17 − 0.085 × 1.1 = 0.0765 $"]

`line` evaluates what it is given and returns what it shows, rounded as shown; the next line
calculates with that. So whoever calculates the lines again gets the same.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Literal

from mlcloud import parsing

Confidence = Literal["low", "medium", "high"]
Per = Literal["month", "once"]

HOURS_A_MONTH = Decimal("730.5")  # 8,766 h a year, of 365.25 days

_SIGNS = str.maketrans({"×": "*", "−": "-", "÷": "/"})
_OPERATIONS: dict[type[ast.operator], Callable[[Decimal, Decimal], Decimal]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Advice:
    """`saves_usd` a month at the history's pace, or once; `about` what it is about. Every number of
    `text` is in `arithmetic`; `action` is the command that does it."""

    kind: str
    about: str
    text: str
    saves_usd: Decimal
    per: Per
    arithmetic: tuple[str, ...]
    action: str
    confidence: Confidence
    simulated: bool = False


@dataclass
class Working:
    """The lines of one advice, in their order."""

    lines: list[str] = field(default_factory=list)

    def fact(self, text: str) -> None:
        """What was measured, or is taken for granted."""
        self.lines.append(text)

    def line(self, what: str, expression: str, unit: str = "", *, digits: int = 4) -> Decimal:
        """`what: expression = value unit`; the value has so many significant digits."""
        value = _rounded(evaluate(expression), digits)
        self.lines.append(f"{what}: {expression} = {number(value)}{f' {unit}' if unit else ''}")
        return value


def number(value: Decimal | float | int) -> str:
    """A number as the lines have it, without an exponent."""
    exact = value if isinstance(value, Decimal) else Decimal(str(value))
    text = f"{exact:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"


def short(value: float, digits: int = 4) -> str:
    """A measured figure with so many significant digits."""
    return number(_rounded(Decimal(str(value)), digits))


def evaluate(expression: str) -> Decimal:
    """The value of `(0.17 − 0.085) × 12 ÷ 24`: numbers, + − × ÷ and parentheses."""
    with localcontext() as context:
        context.prec = 40
        return _value(parsing.expression(expression.translate(_SIGNS)))


def _value(node: ast.expr) -> Decimal:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return Decimal(str(node.value))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise ValueError(f"no arithmetic: {ast.unparse(node)}")


def _rounded(value: Decimal, digits: int) -> Decimal:
    if value == 0:
        return Decimal(0)
    places = max(digits - 1 - value.adjusted(), 0)
    return value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)
