"""The generated SQL: identifiers and words of any kind are quoted, and nothing of them can end a literal or a body."""

from __future__ import annotations

from dataclasses import replace

from llmqueue.install import seam
from llmqueue.install.default_table import default_mapping
from llmqueue.install.spec import parse_name, parse_table


def test_names_are_quoted_everywhere() -> None:
    columns = {name: f'a"; drop {name}' for name in default_mapping().columns}
    mapping = replace(default_mapping(), table_schema='s"', table_name="t;", columns=columns)

    for text in [seam.view(mapping), seam.trigger(mapping), *(seam.index(mapping, name) for name in seam.INDEXES)]:
        assert '"s""".' in text
        assert 'a"; drop' not in text.replace('a""; drop', "")


def test_a_word_cannot_end_the_body_of_a_function() -> None:
    words = {**default_mapping().words, "running": "$$; drop table x; $body0$ '"}

    (_, status_word, *_) = seam.functions(replace(default_mapping(), words=words))

    assert status_word.count("$body1$") == 2
    assert "'$$; drop table x; $body0$ '''" in status_word


def test_view_and_indexes_are_made_of_the_same_expressions() -> None:
    mapping = default_mapping()
    bare, aliased = seam.expressions(mapping, None), seam.expressions(mapping, "t")

    for name in ("lane", "rank", "user_key", "due_at", "waiting_since", "is_ready", "is_delayed", "is_failed"):
        assert seam.text(getattr(aliased, name)).replace('"t".', "") == seam.text(getattr(bare, name))
    assert seam.text(bare.is_ready) in seam.index(mapping, "llmqueue_ready")
    assert seam.text(aliased.is_ready) in seam.view(mapping)


def test_status_of_our_own_is_null_while_a_task_waits() -> None:
    mapping = replace(
        default_mapping(),
        own_status=True,
        columns={**default_mapping().columns, "status": "llmqueue_status"},
        owner_status_column="done",
        owner_status_type="boolean",
        queued_value="false",
        done_value="true",
    )

    (_, status_word, _, mark_done, mark_queued, _) = seam.functions(mapping)

    assert "when 'unsolved' then null" in status_word
    assert seam.text(seam.expressions(mapping, None).is_ready) == (
        '("done" = \'false\'::boolean or "done" is null) and "llmqueue_status" is null'
    )
    assert 'update "public"."tasks" set "done" = \'true\'::boolean where "id" = any(p_task_ids::bigint[])' in mark_done
    assert 'update "public"."tasks" set "done" = \'false\'::boolean' in mark_queued


def test_table_names_are_read_as_people_write_them() -> None:
    schema, table = parse_table('"My.Schema"."a ""b"""')
    assert (schema and schema.text, table.text, table.is_exact) == ("My.Schema", 'a "b"', True)
    assert parse_table("tasks")[0] is None
    assert parse_table("public.my tasks")[1].text == "my tasks"


def test_an_unquoted_name_is_found_exactly_or_folded_and_a_quoted_one_exactly_only() -> None:
    assert parse_name("Tasks").find(["tasks", "Tasks"]) == "Tasks"
    assert parse_name("TASKS").find(["tasks"]) == "tasks"
    assert parse_name('"TASKS"').find(["tasks"]) is None
