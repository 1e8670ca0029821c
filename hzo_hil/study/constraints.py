"""Constraints of a study: `bits >= 6 or phase_noise < 0.05`, read as an expression and never run as a program.

Names are axes, dots belong to names. Allowed are numbers, texts, lists, arithmetic, comparisons, `in`, and/or/not.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from hzo_hil.devices.errors import ConfigError

_TWO: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Mod: operator.mod, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
_ONE: dict[type[ast.AST], Callable[[Any], Any]] = {ast.Not: operator.not_, ast.USub: operator.neg}


class Constraint:
    """One expression over axes. Raises ConfigError for what is no such expression, or names no axis."""

    def __init__(self, text: str, axes: list[str]) -> None:
        self.text = text
        try:
            self._body = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise ConfigError(f"constraint {text!r} is not an expression: {error}") from None
        for name in self._check(self._body):
            if name not in axes:
                raise ConfigError(f"constraint {text!r}: no axis {name!r}; the axes are {', '.join(axes)}")

    def holds(self, point: Mapping[str, Any]) -> bool:
        try:
            return bool(_value(self._body, point))
        except (TypeError, ArithmeticError) as error:
            given = ", ".join(f"{n}={v!r}" for n, v in point.items())
            raise ConfigError(f"constraint {self.text!r} has no answer for {given}: {error}") from None

    def _check(self, node: ast.expr) -> list[str]:
        """The names in an expression; what is not allowed is refused."""
        match node:
            case ast.Name() | ast.Attribute():
                return [_dotted(node, self.text)]
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return []
            case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.BoolOp(values=parts):
                return [name for part in parts for name in self._check(part)]
            case ast.UnaryOp(op=op, operand=part) if type(op) in _ONE:
                return self._check(part)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _TWO:
                return [*self._check(left), *self._check(right)]
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _TWO for op in ops):
                return [name for part in (left, *others) for name in self._check(part)]
        raise ConfigError(
            f"constraint {self.text!r}: {ast.unparse(node)!r} is not allowed; use axes, numbers, texts, + - * / %,"
            " comparisons, in, and, or, not"
        )


def _dotted(node: ast.expr, text: str) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, text)}.{node.attr}"
    raise ConfigError(f"constraint {text!r}: {ast.unparse(node)!r} is no axis")


def _value(node: ast.expr, point: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(part, point) for part in parts]
        case ast.BoolOp(op=op, values=parts):
            results = (bool(_value(part, point)) for part in parts)
            return all(results) if isinstance(op, ast.And) else any(results)
        case ast.UnaryOp(op=op, operand=part):
            return _ONE[type(op)](_value(part, point))
        case ast.BinOp(left=left, op=op, right=right):
            return _TWO[type(op)](_value(left, point), _value(right, point))
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(part, point) for part in (left, *others)]
            return all(_TWO[type(op)](a, b) for op, a, b in zip(ops, values, values[1:], strict=False))
    return point[_dotted(node, "")]
