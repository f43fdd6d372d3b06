"""Prompts made of docstrings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmqueue.demo import scenario
from llmqueue.demo.prompts import make_prompts

COUNT = scenario.SOLVED_BEFORE + scenario.WAITING


def test_there_are_enough_and_all_differ():
    prompts = make_prompts(COUNT)

    assert len(prompts) == COUNT
    assert len({prompt.text for prompt in prompts}) == COUNT


def test_they_are_the_same_at_each_call():
    assert make_prompts(50) == make_prompts(50)


def test_nothing_is_imported():
    before = set(sys.modules)

    make_prompts(500)

    assert set(sys.modules) - before == set()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "shapes.py").write_text('''"""Shapes of all kinds, in two dimensions."""
def area(shape):
    """Returns the area of a shape in square metres."""
def _hidden():
    """Returns what nobody should be asked about."""
class Circle:
    """A circle, given by its centre and its radius."""
    def area(self):
        """Returns the area of a shape in square metres."""
    async def grow(self):
        """Makes the circle larger until somebody says stop."""
    def brief(self):
        """Too short."""
''')
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "shapes.py").write_text('"""A docstring of a test, which is left out."""')
    (tmp_path / "solids").mkdir()
    (tmp_path / "solids" / "__init__.py").write_text('"""Solids of all kinds, in three dimensions."""')
    return tmp_path


def test_public_names_are_asked_about_each_docstring_once(library: Path):
    prompts = make_prompts(5, library)

    assert [prompt.name for prompt in prompts] == [
        "shapes",
        "shapes.area",
        "shapes.Circle",
        "shapes.Circle.grow",
        "solids",
    ]
    assert prompts[1].text == (
        "Summarise in one sentence what `shapes.area` does:\n\nReturns the area of a shape in square metres."
    )


def test_a_python_with_few_docstrings_is_asked_in_other_words(library: Path):
    prompts = make_prompts(100, library)

    assert len(prompts) == 20
    assert len({prompt.text for prompt in prompts}) == 20
