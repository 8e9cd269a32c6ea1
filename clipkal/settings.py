"""What a setting may be, declared once: in the type of the argument that takes it.

    @checked
    def __init__(self, model: nn.Module, damping: Positive = 0.1, fisher: Literal["true", "ggn"] = "true"): ...

refuses `damping=-1` with "damping should be greater than 0, not -1". pydantic reads the types; values are checked as
they are, never converted. The configuration's own settings (config/schema.py) have their types from here as well.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Finite, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, le=1e12)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
"""From 0 to below 1: a momentum, the weight of the past in a running mean."""
Pair = Annotated[
    Sequence[Fraction], Field(min_length=2, max_length=2, description="two numbers from 0 to below 1")
]
"""Two running means."""
Share = Annotated[float, Field(gt=0, le=1)]
"""Above 0, up to 1: a forgetting factor, a part of a whole."""
Variance = Annotated[float, Field(ge=1e-30, le=1e12, description="a number from 1e-30 to 1e12")]
"""Beyond these bounds products with a Jacobian overflow or vanish in float32."""
Count = Annotated[int, Field(ge=1)]
Draws = Annotated[int, Field(ge=1, le=1_000_000)]
"""How many draws of the logits from a posterior."""
DRAWS = 100
"""As many as a run has where nothing else is said."""
Several = Annotated[int, Field(ge=2)]
"""Two or more: the folds of a cross-validation."""
Members = Annotated[int, Field(ge=2, le=16)]
"""Of an ensemble: no more than draws are asked for at once."""
Steps = Annotated[int, Field(ge=0)]

Function = TypeVar("Function", bound=Callable[..., None])
PLAIN = (float, int, bool, str, NoneType)


def checked(function: Function) -> Function:
    """Holds every call of a function to the types of its arguments, where these are numbers, words or None.

    The wrapped function raises ValueError, in one line with the name of the argument, what it should be and what
    it was. Arguments of other types (modules, tensors, parts of a filter) are left to the function itself.
    """
    signature = inspect.signature(function)

    @cache
    def types() -> dict[str, Any]:
        hints = get_type_hints(function, include_extras=True)
        return {name: hint for name, hint in hints.items() if name != "return" and is_plain(hint)}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs).arguments
        for name in types().keys() & given.keys():
            check(name, given[name], types()[name])
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def check(name: str, value: Any, kind: Any) -> None:
    """Raises ValueError where `value` is not of the type `kind`: "lr should be greater than 0, not -1".

    A `description` of the type, Field(description=…), says what it should be in words of its own.
    """
    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError:
        raise ValueError(f"{name} should be {_wanted(kind, value)}, not {value!r}") from None


def _wanted(kind: Any, value: Any) -> str:
    """What a type asks for, where the value is not that."""
    for one in getattr(kind, "__metadata__", ()):
        if description := getattr(one, "description", None):
            return str(description)
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_wanted(one, value) for one in get_args(kind) if one is not NoneType)
    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        return " or ".join(dict.fromkeys(e["msg"].removeprefix("Input should be ") for e in error.errors()))
    return ""


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def is_plain(hint: Any) -> bool:
    """Whether a type is made of numbers, words, None, lists of these and choices among them only."""
    origin = get_origin(hint)
    if origin is Annotated:
        return is_plain(get_args(hint)[0])
    if origin in (Union, UnionType, list, Sequence):
        return all(map(is_plain, get_args(hint)))
    return origin is Literal or hint in PLAIN
