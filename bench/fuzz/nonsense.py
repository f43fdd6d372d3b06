"""Texts, numbers and bytes that are difficult for programs, and mutation of bytes."""

from __future__ import annotations

from random import Random

TEXTS = (
    "",
    " ",
    "\t\r\n",
    "0",
    "-1",
    "-0",
    "+5",
    "1e400",
    "1e-400",
    "NaN",
    "nan",
    "Infinity",
    "-inf",
    "٣",  # an Arabic digit, which int() accepts
    "1_000",
    "9" * 30,
    "9" * 5000,  # more digits than int() accepts
    "9223372036854775808",
    "2147483648",
    "-32769",
    "0x10",
    "null",
    "true",
    "None",
    "'",
    '"',
    "\\",
    "\\.",
    "\\N",
    "';--",
    "%s%(x)s%",
    "{}{0}",
    "$HOME",
    "${X:-}",
    "../../etc/passwd",
    "/dev/null",
    "-",
    "--",
    "--help",
    "\u202e\u200f\ufeff",
    "\u2028\u2029\x85\x0b\x0c",
    "e\u0301\U0001f98a",
    "\x1b[31mred\x1b[0m",
    "\x7f\x01",
    "[bold]x[/bold]",
    "x" * 100_000,
    "2030-01-31T12:00:00Z",
    "9999-12-31T23:59:59.999999-14:00",
    "0001-01-01T00:00:00+14:00",
    "30d",
    "1e9d",
    "999999999999d",
    "http://[::1",
    "http://a:99999/",
    "postgresql://u:p@h:x/db",
    "host=",
)
# texts that no environment variable, argument or text column can hold
BROKEN_TEXTS = ("\0", "a\0b", "\ud800", "a\udfffb")

JSON = (
    b"null",
    b"true",
    b"0",
    b"-0",
    b"1e400",
    b"-1e400",
    b"NaN",
    b"Infinity",
    b"9" * 30,
    b"9" * 5000,
    b"1.0",
    b"1E+2",
    b"0.1e1",
    b'""',
    b'"\\u0000"',
    b'"\\ud800"',
    b'"\\ud83e\\udd8a"',
    b"[]",
    b"{}",
    b"[[]]",
    b'{"a":{"b":[null]}}',
    b'{"a":1,"a":2}',
    b"[" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    b'"' + b"x" * 300_000 + b'"',
    b'"' + "🦊".encode() * 1000 + b'"',
)

BYTES = (
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",  # a surrogate as UTF-8 would write it
    b"\xef\xbb\xbf",
    b"\xfe\xff",
    b"\r\n",
    b"\r",
    b"\n",
    b'"',
    b"'",
    b",",
    b":",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\\",
    b"\\u",
    b"\xe2\x80\xa8",
    b"\x1b[2J",
    b"prompt",
    b'"prompt":',
)


def text(rng: Random, broken: float = 0.0) -> str:
    if rng.random() < broken:
        return rng.choice(BROKEN_TEXTS)
    draw = rng.random()
    if draw < 0.7:
        return rng.choice(TEXTS)
    kinds = ("abc ÄÖ\"',\\{}[]\n\r\t", "0123456789.-+eE_", "\u4f60\u597d\U0001f98a\u200d\u202e", "\x01\x1b\x7f\x9b")
    alphabet = rng.choice(kinds)
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 40)))


def mutated(data: bytes, rng: Random, times: int = 0) -> bytes:
    """Returns the bytes with up to `times` places changed (0: one to four)."""
    for _ in range(times or rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0:
                data = data[:at] + rng.choice(BYTES) + data[at:]
            case 1:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 2:
                data = data[:at] + data[at + rng.randrange(1, 9) :]
            case 3:
                data = data[:at]
            case 4:
                end = min(len(data), at + rng.randrange(1, 40))
                data = data[:end] + data[at:end] * rng.choice((1, 2, 50)) + data[end:]
            case 5:
                data = data[:at] + rng.choice(JSON) + data[at:]
            case _:
                data = data[:at] + rng.randbytes(rng.randrange(1, 20)) + data[at:]
    return data
