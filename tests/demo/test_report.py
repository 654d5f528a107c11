"""The page needs nothing but itself, and what peers wrote stays text in it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from orchd.demo.report import page, write_report
from orchd.demo.results import Results


class Reader(HTMLParser):
    """Collects what a browser would load, and checks that every element is closed."""

    VOID = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loaded += [value or "" for name, value in attrs if name in {"src", "href", "data", "srcset"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_loads_nothing(results: Results) -> None:
    text = page(results)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.loaded == []
    assert not reader.tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?://|@import|url\((?!#)", text)


def test_page_shows_the_measured_figures(results: Results) -> None:
    text = page(results)
    for shown in ("97 %", "2112 DigestMismatch", "0 of 600", "zavo pelmi", "every check held", "prefers-color-scheme"):
        assert shown in text
    assert "a check did not hold" in page(replace(results, refused=()))


def test_words_of_peers_stay_text(results: Results) -> None:
    hostile = "<script>alert('x')</script>"
    answer = replace(results.deployment.answers[0], average=hostile, prompt=hostile)
    broken = replace(
        results,
        refused=(replace(results.refused[0], reason=hostile),),
        deployment=replace(results.deployment, answers=(answer,)),
    )
    assert "<script" not in page(broken)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_files_are_whole(results: Results, rounds: int, tmp_path: Path) -> None:
    shortened = replace(results, rounds=results.rounds[:rounds])
    assert write_report(shortened, tmp_path) == tmp_path / "report.html"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.svg", "report.html"]
    ElementTree.parse(tmp_path / "demo.svg")
