"""How values cross between tests and program: JSON lines that only ever become plain built-in values.

The program's side is hostile. Whatever bytes it sends, ``decode`` makes numbers, strings, bytes and containers of them,
of exactly these types: nothing with an ``__eq__``, ``__len__`` or ``__class__`` of the program's own (so no pickle). A
value of another type arrives as an ``Opaque``, which equals nothing but still has its text and its items, because
``str(...)`` and ``tuple(...)`` of a result are what some tests compare.
"""

import itertools
import json
import os
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from fractions import Fraction

LENGTH_BYTES = 8  # of the number before a job
MESSAGE_BYTES = 4 << 20  # of one value; decoded, it can take about thirty times as much
_ITEMS = 100_000  # of an iterator, which may be endless
_CONTAINERS = {"tuple": tuple, "set": set, "frozenset": frozenset}


class MalformedError(Exception):
    """Bytes that are no message of this protocol."""


class TooLongError(Exception):
    """A message beyond the limit."""


class Opaque:
    """Stands in for a value of a type that does not cross."""

    def __init__(self, kind: str, text: str, items: list | None):
        self.kind, self.text, self.items = kind, text, items

    def __str__(self) -> str:
        return self.text

    def __iter__(self) -> Iterator:
        if self.items is None:
            raise TypeError(f"{self.kind} object is not iterable")
        return iter(self.items)


def encode(value: object) -> object:
    """A value as JSON can hold it: lists and small scalars as they are, the rest as an object of one key, its type."""
    match value:
        case None | bool() | float():
            return value if value is None else float(value) if isinstance(value, float) else bool(value)
        case str():
            return str.__str__(value)
        case int():
            return int(value) if -(2**53) < value < 2**53 else {"int": hex(value)}
        case list():
            return [encode(item) for item in value]
        case dict():
            return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
        case tuple() | set() | frozenset():
            kind = next(name for name, base in _CONTAINERS.items() if isinstance(value, base))
            return {kind: [encode(item) for item in value]}
        case bytes() | bytearray():
            return {type(value).__name__: value.hex()}
        case complex():
            return {"complex": [value.real, value.imag]}
        case range():
            return {"range": [encode(part) for part in (value.start, value.stop, value.step)]}
        case Fraction():
            return {"fraction": [encode(value.numerator), encode(value.denominator)]}
        case Decimal():
            return {"decimal": str(value)}
    return {"other": [type(value).__name__, str(value), _items(value)]}


def _items(value: object) -> list | None:
    if not hasattr(type(value), "__iter__"):
        return None
    items = list(itertools.islice(iter(value), _ITEMS + 1))
    return None if len(items) > _ITEMS else [encode(item) for item in items]


def decode(message: object) -> object:
    """The value that ``encode`` was given; ``MalformedError`` if it could not have come from there."""
    try:
        return _decode(message)
    except (TypeError, ValueError, RecursionError, ZeroDivisionError, InvalidOperation) as error:
        raise MalformedError(f"not a value: {error}") from None


def _decode(message: object) -> object:
    if isinstance(message, list):
        return [_decode(item) for item in message]
    if not isinstance(message, dict):
        return message
    ((kind, content),) = message.items()
    match kind, content:
        case ("int", str()):
            return int(content, 16)
        case ("tuple" | "set" | "frozenset", list()):
            return _CONTAINERS[kind](_decode(item) for item in content)
        case ("dict", list()):
            return {_decode(key): _decode(item) for key, item in content}
        case ("bytes" | "bytearray", str()):
            return {"bytes": bytes, "bytearray": bytearray}[kind].fromhex(content)
        case ("complex", [int() | float() as real, int() | float() as imaginary]):
            return complex(real, imaginary)
        case ("range", [_, _, _]):
            return range(*map(_decode, content))
        case ("fraction", [_, _]):
            return Fraction(*map(_decode, content))
        case ("decimal", str()):
            return Decimal(content)
        case ("other", [str() as name, str() as text, list() | None as items]):
            return Opaque(name, text, items if items is None else _decode(items))
    raise ValueError(f"an unknown kind {kind[:20]!r}")


class Line:
    """JSON messages over a pair of file descriptors, one a line."""

    def __init__(self, incoming: int, outgoing: int):
        self.incoming, self._outgoing = incoming, outgoing
        self._buffer = bytearray()

    def send(self, message: object) -> None:
        """Write one message, waiting for the reader where the pipe is full."""
        rest = memoryview(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        while rest:
            rest = rest[os.write(self._outgoing, rest) :]

    def receive(self, limit: int | None = MESSAGE_BYTES) -> object:
        """The next message; ``EOFError`` at the end, ``TooLongError`` or ``MalformedError`` if it is not JSON."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if limit is not None and searched > limit:
                raise TooLongError(f"a result of more than {limit:,} bytes")
            received = os.read(self.incoming, 1 << 16)
            if not received:
                raise EOFError
            self._buffer += received
        message = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            return json.loads(message)
        except (ValueError, RecursionError) as error:
            raise MalformedError(f"not JSON: {error}") from None

    def pending(self) -> bool:
        """Whether bytes were received beyond the last message."""
        return bool(self._buffer)
