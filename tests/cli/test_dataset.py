"""`orchctl dataset` on its own: what a person at a terminal is asked, what is told to the daemon, the picture."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree

import pytest

from orchd.cli import histogram
from orchd.cli.context import Context
from orchd.cli.nouns import dataset
from orchd.cli.run import _parsed
from orchd.errors import OrchdError, SecretsFound, UsageInvalid

BARS = [{"low": 4, "high": 5, "rows": 1}, {"low": 6, "high": 7, "rows": 0}, {"low": 8, "high": 11, "rows": 200}]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Asked(Context):
    """A context whose daemon finds a key until it is told what to do."""

    def __init__(self, *, json: bool = False) -> None:
        super().__init__(json=json, quiet=False, out=io.StringIO(), err=io.StringIO(), environ={})
        self.told: list[dict[str, Any]] = []

    def run_job(self, command: Any, params: dict[str, Any], *, detach: bool) -> int:
        self.told.append(params)
        if "secrets" not in params:
            raise SecretsFound("a key in mine.jsonl")
        return 0


def run(context: Context, *words: str) -> int:
    options = _parsed("dataset", ["import", "/x/mine.jsonl", *words])
    params = {
        name: value for name, value in vars(options).items() if name in ("source", "secrets") and value is not None
    }
    return dataset.import_file(context, options, params)


@pytest.mark.parametrize(("answer", "way"), [("r", "redact"), ("Drop", "drop"), ("k\n", "keep")])
def test_a_person_is_asked_what_to_do_with_keys(answer: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    context = Asked()
    assert run(context) == 0
    assert context.told == [{"source": "/x/mine.jsonl"}, {"source": "/x/mine.jsonl", "secrets": way}]
    assert "a key in mine.jsonl" in str(context.err.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize("answer", ["", "\n", "s", "what?"])
def test_any_other_answer_stops(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    with pytest.raises(SecretsFound):
        run(context := Asked())
    assert len(context.told) == 1


def test_a_program_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("k"))
    with pytest.raises(SecretsFound):
        run(Asked(json=True))
    monkeypatch.setattr("sys.stdin", io.StringIO("k"))
    with pytest.raises(SecretsFound):
        run(Asked())


def test_other_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Asked):
        def run_job(self, command: Any, params: dict[str, Any], *, detach: bool) -> int:
            raise UsageInvalid("no")

    monkeypatch.setattr("sys.stdin", Terminal("k"))
    with pytest.raises(OrchdError, match="no"):
        run(Failing())


def test_the_switches_are_one_parameter() -> None:
    options = _parsed(
        "dataset", ["import", "x", "--redact", "--keys-only", "--keep-near-duplicates", "--id", "a", "--id", "b"]
    )
    assert (options.secrets, options.keys_only, options.near_duplicates, options.ids) == (
        "redact",
        True,
        "keep",
        ["a", "b"],
    )


@pytest.mark.parametrize("columns", ["question", "question=", "=Q", "a=b,c"])
def test_columns_are_pairs(columns: str) -> None:
    options = _parsed("dataset", ["import", "x", "--columns", columns])
    with pytest.raises(UsageInvalid, match="no list of NAME=COLUMN"):
        dataset.import_file(Asked(), options, {"source": "x", "columns": columns})


def test_the_histogram_in_characters() -> None:
    assert histogram.in_characters(BARS).splitlines() == [" 4-5  ▏ 1", " 6-7   0", "8-11  " + "█" * 40 + " 200"]
    assert histogram.in_characters([]) == ""


def test_the_histogram_as_a_page() -> None:
    page = histogram.page(BARS, title="<mine>", told="rows & tokens")
    assert "<title>&lt;mine&gt;</title>" in page
    assert "rows &amp; tokens" in page
    assert "http" not in page, "it needs nothing from elsewhere"
    drawing = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    widths = [float(bar.attrib["width"]) for bar in drawing.iter("rect")]
    assert widths == [pytest.approx(max(widths) / 200, abs=0.1), 0, max(widths)]
    assert drawing.attrib["aria-label"] == "Rows by length in tokens: 4-5: 1, 6-7: 0, 8-11: 200"
