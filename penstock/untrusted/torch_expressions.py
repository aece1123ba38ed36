"""Shape expressions of an exported program, such as `Mul(Integer(2), Symbol('s0', positive=True))` (pure).

torch hands them to sympy, which evaluates them as Python. So only calls of known functions on numbers and symbols pass.
"""

from __future__ import annotations

import ast
from typing import Final

from penstock.errors import InvalidArgument

MAX_LENGTH: Final = 4096

# fmt: off
_FUNCTIONS: Final = frozenset((
    # sympy's own
    "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "Integer", "Float", "Rational", "Symbol", "Eq", "Ne", "Lt", "Le",
    "Gt", "Ge", "And", "Or", "Not", "Piecewise", "Equality", "Unequality", "StrictLessThan", "LessThan",
    "StrictGreaterThan", "GreaterThan", "ExprCondPair",
    # torch.utils._sympy.functions
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift",
    "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator",
    "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
))
_ASSUMPTIONS: Final = frozenset((
    "integer", "positive", "nonnegative", "real", "finite", "commutative", "evaluate", "precision",
))
_NAMES: Final = frozenset(("oo", "true", "false", "zoo"))
# fmt: on
_OPERATORS: Final = (
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.FloorDiv,
    ast.Mod,
    ast.USub,
    ast.UAdd,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
    ast.Eq,
    ast.NotEq,
)  # fmt: skip


def check_expression(text: str) -> None:
    """Raises InvalidArgument where evaluating the text could do more than arithmetic."""
    try:
        if len(text) > MAX_LENGTH:
            raise ValueError
        _check(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise InvalidArgument(f"the program holds the shape {text[:60]!r}, which is not plain arithmetic") from None


def _check(node: ast.expr) -> None:
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=keywords):
            if not name.isidentifier() or not name.isascii():
                raise ValueError
            _check_keywords(keywords)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(number))], keywords=keywords):
            float(number)
            _check_keywords(keywords)
        case ast.Call(func=ast.Name(id=function), args=args, keywords=keywords) if function in _FUNCTIONS:
            for argument in args:
                _check(argument)
            _check_keywords(keywords)
        case ast.Constant(value=bool() | int() | float()):
            pass
        # A bare name is a symbol: harmless, as nothing here can call it or look into it.
        case ast.Name(id=name) if name in _NAMES or (name[0] in "suz" and name[1:].isdecimal()):
            pass
        case ast.UnaryOp(op=op, operand=operand) if isinstance(op, _OPERATORS):
            _check(operand)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            _check(left)
            _check(right)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(isinstance(op, _OPERATORS) for op in ops):
            for operand in (left, *others):
                _check(operand)
        case ast.Tuple(elts=items):
            for item in items:
                _check(item)
        case _:
            raise ValueError


def _check_keywords(keywords: list[ast.keyword]) -> None:
    for keyword in keywords:
        if keyword.arg not in _ASSUMPTIONS or not isinstance(keyword.value, ast.Constant):
            raise ValueError
        # As in Float('2.0', precision=53); text as an assumption would reach sympy's parser.
        if isinstance(keyword.value.value, str):
            raise ValueError
