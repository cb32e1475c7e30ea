"""The examples of docs/semantics.md are right, in every module that has the functions."""

import doctest
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "semantics.md"


def test_examples(module):
    text = PAGE.read_text(encoding="utf-8")
    # A fence would belong to the output of the example before it.
    text = text.replace("```", "").replace("import cattn\n", f"import {module.__name__} as cattn\n")
    page = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    assert len(page.examples) > 50
    report = []
    results = doctest.DocTestRunner().run(page, out=report.append)
    assert results.failed == 0, "".join(report)
