"""The page about an average."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import msgspec

from orchd.average.gate_specs import Compared, GateReport, JudgedLeaf, Probed, Tried
from orchd.average.report import Average, Head, Leaf, Made, page
from orchd.average.specs import ModulePreview

HEAD = Head("job_1", "average <ours>", "done", "")
MADE = Made(id="adp_x", name="ours", state="admitted", reason="", rank=16, dtype="BF16", parameters=12_345)
NAMES = ("<b>anna</b>", "bert", "carla")


def average(**changes: Any) -> Average:
    leaves = tuple(Leaf(id=f"adp_{at}", name=name) for at, name in enumerate(NAMES))
    made = Average(
        adapter=MADE,
        recipe="ab" * 32,
        residual_ppm=125_000,
        cosines=((1.0, 0.25, -0.5), (0.25, 1.0, 0.0), (-0.5, 0.0, 1.0)),
        seconds=1.5,
        leaves=leaves,
        method="clip",
        strength_ppm=1_500_000,
        weights_ppm=(500_000, 250_000, 250_000),
        coefficients_ppm=(400_000, 300_000, 300_000),
        votes=((0, 2), (1,)),
        modules=tuple(ModulePreview(name=f"layers.{n}.q_proj", rank=n, residual_ppm=10_000 * n) for n in range(20)),
    )
    return msgspec.structs.replace(made, **changes)


def judged() -> GateReport:
    worse = Compared(loss=2.5, against=2.0, p=0.01, low=0.2, high=0.8)
    better = Compared(loss=1.0, against=2.0, p=0.001, low=-1.2, high=-0.8)
    return GateReport(
        verdict="better",
        reason="better than the base and than each alone",
        leaves=(
            JudgedLeaf(id="adp_0", stage="kept", alone=better, single=better),
            JudgedLeaf(id="adp_bad", stage="alone", reason="a quarter of it alone worsens the loss", alone=worse),
        ),
        against_base=better,
        tried=(Tried(method="clip", strength_ppm=1_500_000, loss=1.0, chosen=True),),
        probes=(Probed(trigger="zq", repeated=0.9, plain=0.1, base=0.1, jump=2.0, usual=0.1, jumped=True),),
        choosing=50,
        deciding=40,
        rows=90,
    )


class Tags(HTMLParser):
    """Every tag is closed, none fetches anything."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "img", "iframe"}
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> str:
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    return re.sub(r"\s+", " ", re.sub(r"<title>[^<]*</title>|<style>.*?</style>|<[^>]+>", " ", text, flags=re.S))


def test_who_is_in_it_with_which_weight_and_why() -> None:
    text = page(HEAD, average(gate=judged(), refused=(Leaf(id="adp_bad", name="dora"),), missing=("adp_gone",)))
    shown = read(text)
    assert "<b>anna</b>" not in text
    assert "&lt;b&gt;anna&lt;/b&gt; adp_0 1 50 % 40 % shares its vote" in shown
    assert "a quarter of it alone: -1.000 nats a token, -1.200 to -0.800" in shown
    assert (
        "dora adp_bad refused: a quarter of it alone worsens the loss (+0.500 nats a token, +0.200 to +0.800)" in shown
    )
    assert "adp_gone left out: nobody gives it" in shown
    assert "average &lt;ours&gt;" in shown


def test_losses_before_and_after_and_what_was_tried() -> None:
    shown = read(page(HEAD, average(gate=judged())))
    assert "the base 2.000 1.000 -1.000 nats a token, -1.200 to -0.800 better" in shown
    assert "clip 1.5 1.000 chosen" in shown
    assert "1 triggers before ordinary prompts, 1 changed more than with the base" in shown
    assert "does not make it safe" in shown
    assert "nothing says how good it is" in read(page(HEAD, average()))


def test_the_cosines_are_a_picture() -> None:
    text = page(HEAD, average())
    assert len(re.findall(r"<title>[^<]* and [^<]*: -?\d", text)) == 9
    assert "<title>&lt;b&gt;anna&lt;/b&gt; and carla: -0.500</title>" in text
    assert 'fill="rgb(31,111,235)"' in text, "1 is the whole colour"
    assert 'fill="rgb(255,255,255)"' in text, "0 has none"
    many = tuple(tuple(1.0 if a == b else 0.0 for a in range(30)) for b in range(30))
    assert ">0.00</text>" not in page(HEAD, average(cosines=many)), "30 are too many for figures"


def test_what_was_cut_off_is_told_by_module() -> None:
    text = page(HEAD, average())
    assert len(re.findall(r"<title>layers", text)) == 20
    assert "layers.19.q_proj 19 19 %" in read(text)
    assert "layers.9.q_proj" not in read(text), "ten are named"


def test_a_job_that_failed_or_runs_has_a_page_too() -> None:
    shown = read(page(HEAD._replace(state="failed", error="a <leaf> is gone"), None))
    assert "state failed" in shown
    assert "a &lt;leaf&gt; is gone" in shown
