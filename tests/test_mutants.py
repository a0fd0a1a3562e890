"""Every known defect still has its place: the text that it replaces is there once, and the tests that must notice exist."""

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def defects(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    monkeypatch.syspath_prepend(ROOT / "tests" / "mutants")
    monkeypatch.delitem(sys.modules, "defects", raising=False)
    from defects import DEFECTS

    return tuple(DEFECTS)


def test_every_defect_can_be_planted_and_names_tests_that_exist(defects: tuple[Any, ...]) -> None:
    names = [defect.name for defect in defects]
    assert len(set(names)) == len(names)
    for defect in defects:
        text = (ROOT / "pcexp" / defect.file).read_text()
        assert text.count(defect.sound) == 1 and defect.sound != defect.planted, defect.name
        for test in defect.tests:
            file, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), test
