from __future__ import annotations

import io
import json

import pytest

from llmqueue.errors import UsageError
from llmqueue.load.reader import BadLine, Format, Reader, Row, sniff


def read(
    text: bytes, format_: Format = "jsonl", *, prompt_is_json: bool = False, needs_id: bool = False, **defaults: str
) -> list[Row | BadLine]:
    return list(Reader(defaults, prompt_is_json, needs_id).read(io.BytesIO(text), format_))


def reason(line: bytes, **options: bool) -> str:
    (bad,) = read(line, **options)  # type: ignore[arg-type]
    assert isinstance(bad, BadLine), bad
    return bad.reason


def test_line_is_a_prompt_or_an_object() -> None:
    rows = read(b'"hi"\n{"prompt":"there","model":"m","priority":3,"params":{"t":0.5},"user_id":7,"max_attempts":2}\n')

    assert rows == [
        Row(1, {"prompt": "hi"}),
        Row(
            2,
            {
                "prompt": "there",
                "model": "m",
                "priority": "3",
                "params": '{"t":0.5}',
                "user_id": "7",
                "max_attempts": "2",
            },
        ),
    ]


def test_defaults_fill_what_a_line_lacks() -> None:
    rows = read(b'"a"\n{"prompt":"b","model":"own","priority":null}\n', model="m", priority="5")

    assert rows == [
        Row(1, {"model": "m", "priority": "5", "prompt": "a"}),
        Row(2, {"model": "own", "priority": "5", "prompt": "b"}),
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        "x" * 150_000,
        "🦊" * 1000,
        "\u202eמה השעה؟ \u200f",
        "line\u2028separator\u2029and\x85next",
        "tab\tnew\nline\\N \\.",
    ],
)
def test_unusual_text_comes_through_unchanged(prompt: str) -> None:
    for line in (json.dumps(prompt), json.dumps(prompt, ensure_ascii=False)):
        assert read(line.encode() + b"\n") == [Row(1, {"prompt": prompt})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'""', "prompt is empty"),
        (b'{"prompt":""}', "prompt is empty"),
        (b'{"prompt":null}', "prompt is empty"),
        (b'{"model":"m"}', 'has no "prompt"'),
        (b'{"prompt":"x","modle":"m"}', 'has the unknown key "modle"; known are id, prompt, model, priority, '),
        (b'"a\\ud800b"', "prompt holds a lone surrogate or a byte that is not UTF-8"),
        (b'"a\\u0000b"', "prompt holds a NUL character, which Postgres cannot store"),
        (b'"\xff"', "not UTF-8 text"),
        (b"[1]", 'is neither a prompt ("…") nor an object with the key "prompt"'),
        (b"{", "not JSON: Expecting property name enclosed in double quotes at character 2"),
        (b'{"prompt":"x","params":{"a":NaN}}', "not JSON: NaN is no JSON number"),
        (b'{"prompt":"x","params":{"a":"\\u0000"}}', "params holds a NUL character, which Postgres cannot store"),
        (b'{"prompt":"x","params":[1]}', "params must be an object"),
        (b'{"prompt":"x","priority":1.5}', "priority must be a whole number (got 1.5)"),
        (b'{"prompt":"x","priority":true}', "priority must be a whole number (got True)"),
        (b'{"prompt":"x","max_attempts":0}', "max_attempts must be at least 1 (got 0)"),
        (b'{"prompt":"x","model":""}', "model must be text that is not empty"),
        (b'{"prompt":"x","run_at":"tomorrow"}',
         "run_at must be a time with a zone, such as 2030-01-31T12:00:00Z (got tomorrow)"),
        (b'{"prompt":"x","run_at":"2030-01-01T00:00:00"}',
         "run_at must be a time with a zone, such as 2030-01-31T12:00:00Z (got 2030-01-01T00:00:00)"),
        (b'{"prompt":["chat"]}', "prompt must be text, since the column is"),
        (b"[" * 100_000, "not JSON: maximum recursion depth exceeded"),
    ],
)  # fmt: skip
def test_bad_line_says_why(line: bytes, message: str) -> None:
    assert reason(line).startswith(message)


def test_bad_lines_keep_their_number_and_the_others() -> None:
    rows = read(b'"a"\n\n""\r\n"b"')

    assert rows == [Row(1, {"prompt": "a"}), BadLine(3, "prompt is empty"), Row(4, {"prompt": "b"})]


def test_json_prompt_stays_json_for_a_json_column() -> None:
    rows = read(b'{"prompt":[{"role":"user","content":"hi"}]}\n"text"\n', prompt_is_json=True)

    assert rows == [Row(1, {"prompt": '[{"role":"user","content":"hi"}]'}), Row(2, {"prompt": '"text"'})]


def test_table_without_default_key_needs_ids() -> None:
    assert reason(b'"x"', needs_id=True) == 'has no "id", and the key of the table has no default'


def test_csv_reads_quoted_cells_over_lines() -> None:
    rows = read(b'\xef\xbb\xbfprompt,priority,params\n"two\nlines",3,\nplain,,"{""a"":1}"\n', "csv")

    assert rows == [Row(2, {"prompt": "two\nlines", "priority": "3"}), Row(4, {"prompt": "plain", "params": '{"a":1}'})]


def test_csv_names_its_bad_lines() -> None:
    rows = read(b"prompt,priority\na,x\n,1\nb\n\xff,1\n" + b"y" * 200_000 + b',2\n"open,3\n', "csv")

    assert [row for row in rows if isinstance(row, BadLine)] == [
        BadLine(2, "priority must be a whole number (got x)"),
        BadLine(3, "prompt is empty"),
        BadLine(4, "has 1 fields, and the first line has 2"),
        BadLine(5, "prompt holds a lone surrogate or a byte that is not UTF-8"),
        BadLine(7, "not CSV: unexpected end of data"),
    ]
    assert [row.line for row in rows if isinstance(row, Row)] == [6]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"a,b\n", "the first line of a CSV file names its columns, and one of them is prompt; known are "),
        (b"prompt,answer\n", 'unknown column "answer" in the first line; known are '),
        (b"prompt,prompt\n", 'column "prompt" comes twice in the first line'),
        (b"", "the first line of a CSV file names its columns"),
    ],
)
def test_csv_head_without_sense_is_wrong_usage(head: bytes, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(head, "csv")

    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("line", "format_"),
    [
        (b'{"prompt":1}', "jsonl"),
        (b'"a prompt, with a comma"', "jsonl"),
        (b"prompt,model", "csv"),
        (b'\xef\xbb\xbf"prompt","model"\r', "csv"),
        (b'"prompt"', "csv"),
        (b"nonsense", "jsonl"),
    ],
)
def test_format_is_guessed_from_the_first_line(line: bytes, format_: str) -> None:
    assert sniff(line) == format_
