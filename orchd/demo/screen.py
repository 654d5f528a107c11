"""The story in words and a table, told while it runs. Every sentence that the audience reads is in this file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from orchd.demo.node import Adapter, Averaged, Progress
from orchd.demo.results import (
    Departure,
    Deployment,
    Entrant,
    Knowledge,
    Refusal,
    Results,
    Revocation,
    Score,
    Verification,
)
from orchd.demo.terminal import Terminal
from orchd.errors import OrchdError


class Screen:
    """Tells the story on a terminal."""

    def __init__(self, terminal: Terminal, *, quiet: bool = False) -> None:
        self.terminal = terminal
        self.quiet = quiet

    # ---- opening ---------------------------------------------------------------------------------------------

    def opening(self, rounds: int) -> None:
        self._title("Two people teach one model. Neither shows the other a sentence.")
        self._tell(
            "A and B each know one half of an invented language. Each trains a small adapter on its own sentences, "
            f"and only adapters travel. After each of {rounds} rounds the two adapters are averaged, and both go on "
            "from the average. C has no sentences at all: it holds a public exam that mixes both halves."
        )
        self._blank()
        self._tell(
            "Read this first: after round 1 the average will get 0-2 % of the exam right, although its loss has by "
            "then fallen from about 11 to about 2. A sentence counts only when every letter is right, and that comes "
            "with rounds 2 and 3.",
            colour="bold",
        )
        self._blank()

    def introduced(self, knowledge: Iterable[Knowledge], exam: int) -> None:
        for known in knowledge:
            english, invented = known.example
            self._line(
                f"  {self._who(known.node)}  {known.train} sentences over {len(known.words)} words, like "
                f"“{english}” → “{invented}” ({_source(known.kind)})"
            )
        self._line(f"  C  none. The exam: {exam} sentences, each with words of both halves")
        self._blank()

    def topic_joined(self, topic: str) -> None:
        self._tell(
            f"Three daemons are running, each with its own key and home. B and C were told A's address and nothing "
            f"else. All have joined the topic {topic}."
        )
        self._blank()

    # ---- rounds ----------------------------------------------------------------------------------------------

    def announced(self, node: str, adapter: Adapter) -> None:
        self._line(
            f"  {self._who(node)}  trained, signed and announced {short(adapter.id)} ({adapter.size / 1000:.0f} kB)"
        )

    def fetched(self, node: str, other: str, adapter: Adapter, seconds: float) -> None:
        self._line(
            f"  {self._who(node)}  found {other}'s {short(adapter.id)} on the DHT, fetched it in verified chunks and "
            f"admitted it ({seconds:.1f} s)"
        )

    def averages_made(self, averages: Sequence[Averaged], verifications: Sequence[Verification]) -> None:
        same = "the same recipe" if averages[0].recipe == averages[1].recipe else "DIFFERENT recipes"
        worst = max(verification.relative_error for verification in verifications)
        held = "holds" if all(v.holds for v in verifications) else "DOES NOT HOLD"
        self._line(
            f"  {self._who('A')}, {self._who('B')}  averaged separately: {same}; each recomputed the other's result, "
            f"and it {held} (distance {worst:.0e})"
        )
        self._blank()

    def table_head(self, base: Score) -> None:
        a, b = (f"{node}'s adapter" for node in "AB")
        self._line(self._bold(f"  {'C marks':<11}  {a:>14} {b:>14}     average of both"))
        self._line(self._dim(f"  {'':<11}  {'right':>14} {'right':>14} {'loss':>8} {'right':>7}"))
        self._line(f"  {'base':<11}  {'':>14} {'':>14} {base.loss:8.2f} {percent(base.exact_match):>7}")

    def round_done(self, number: int, marks: Sequence[Score]) -> None:
        """`marks`: the exam of the base, A's adapter, B's adapter, the average."""
        a, b = (percent(score.exact_match) for score in marks[1:3])
        exam = marks[3]
        bar = self.terminal.paint(self.terminal.bar(exam.exact_match, 24), "average")
        self._line(f"  {f'round {number}':<11}  {a:>14} {b:>14} {exam.loss:8.2f} {percent(exam.exact_match):>7}  {bar}")

    # ---- the hostile peer, the exam --------------------------------------------------------------------------

    def refused(self, refusal: Refusal) -> None:
        self._blank()
        self._heading("A hostile peer")
        self._tell(
            f"D fetched A's adapter honestly, changed {refusal.bytes_changed} bytes of it on its own disk and "
            "announced it as A's. C asked D for it:"
        )
        self._line(f"  {self.terminal.paint('refused', 'bad bold')}  {refusal.code} {refusal.name}: {refusal.reason}")
        kept = "admitted" if refusal.then_admitted else "NOT admitted"
        self._line(f"  {self.terminal.paint(kept, 'good')} the honest copy, fetched again while D was still there")

    def exam_table(self, entrants: Iterable[Entrant], examples: int) -> None:
        self._blank()
        self._heading(f"The exam, marked by C: {examples} sentences that mix both halves")
        self._line(self._dim(f"  {'':<44} {'steps':>6} {'loss':>7} {'right':>7}"))
        for entrant in entrants:
            exam = entrant.exam
            colour = "average" if entrant.key == "average" else "dim"
            bar = self.terminal.paint(self.terminal.bar(exam.exact_match, 20), colour)
            steps = str(entrant.steps) if entrant.steps else ""
            line = f"{entrant.label:<44} {steps:>6} {exam.loss:7.2f} {percent(exam.exact_match):>7}"
            self._line(f"  {self._bold(line) if entrant.key == 'average' else line}  {bar}")

    # ---- the deployment, what left ---------------------------------------------------------------------------

    def deployed(self, deployment: Deployment) -> None:
        self._blank()
        self._heading(f"C serves the average: GGUF, {deployment.size / 1e6:.1f} MB, target {deployment.target}")
        verdict = "the same answers as the trained model" if deployment.parity else "NOT the trained model's answers"
        self._line(f"  {self._verdict(deployment.parity)} {verdict}: {deployment.parity_detail}")
        for note in deployment.also:
            self._line(f"  {note}")
        for answer in deployment.answers:
            self._blank()
            self._line(f"  {self._bold(answer.prompt)}   (right: {answer.expected})")
            self.side_by_side(answer.a, answer.b, answer.average, expected=answer.expected)

    def side_by_side(self, a: str, b: str, average: str, *, expected: str | None = None) -> None:
        for who, text in (("A", a), ("B", b), ("average", average)):
            mark = "" if expected is None else f"  {self._verdict(text == expected)}"
            self._line(f"    {self._who(who):<{8 + len(self._who(who)) - len(who)}} {text}{mark}")

    def revoked(self, revocation: Revocation) -> None:
        self._blank()
        self._heading("A changes its mind")
        self._tell(
            f"C has merged what A and B trained alone, and serves that too. Now A takes its part back for good "
            f"(“{revocation.reason}”). Nobody does anything at C, and {revocation.seconds:.1f} s later there:"
        )
        for took in sorted(revocation.affected, key=lambda took: took.id != revocation.id):
            word = self.terminal.paint(took.state, "good" if took.state == "quarantined" else "bad")
            why = "A's own" if took.id == revocation.id else "contains it"
            self._line(f"  {word}  {took.name} ({short(took.id)}, {why})")
        for name in revocation.rolled_back:
            self._line(f"  {self.terminal.paint('rolled back', 'good')}  the deployment {name}: now the plain base")
        right = revocation.after == revocation.base
        self._line(f"  {self._bold(revocation.question)}   before: {revocation.before}")
        self._line(f"  {self._verdict(right)} after: {revocation.after}   (the plain base says: {revocation.base})")
        if revocation.spared:
            self._line("  The average of the rounds does not contain what A took back, and stays in use.")

    def left(self, departure: Departure) -> None:
        self._blank()
        self._heading("What left A's machine, read before encryption")
        self._line(
            f"  {departure.bytes:,} bytes in {departure.streams} streams, {departure.records} signed records; "
            f"connections beyond loopback: {len(departure.beyond_loopback)}"
        )
        found = departure.sentences_found
        self._line(
            f"  {self._verdict(found == 0)} {found} of {departure.sentences_searched} training sentences found in it"
        )
        if departure.leak:
            self._line(f"  A's adapter itself, by its signed leak report: {departure.leak}")
            self._line("  (nobody's words: the sentences are marked synthetic, so this is told and holds nothing back)")

    # ---- the prompt ------------------------------------------------------------------------------------------

    def prompt_help(self, a: Sequence[str], b: Sequence[str]) -> None:
        self._blank()
        self._heading("Now you. Type a few of these words; an empty line ends it.")
        for node, known in (("A", a), ("B", b)):
            self._tell(f"{node} knows: {' '.join(known)}", colour=node.lower())

    def prompt_sign(self) -> str:
        return "\n  > "

    def not_in_the_language(self, unknown: Sequence[str]) -> None:
        named = ", ".join(unknown) or "that"
        self._line(f"  {named}: not in the language. It has only the words above.")

    # ---- the end ---------------------------------------------------------------------------------------------

    def finale(self, results: Results, report: Path | None) -> None:
        self._blank()
        for check in results.checks():
            self._line(f"  {self._verdict(check.ok)} {check.name}: {check.detail}")
        self._blank()
        word = "ok" if results.ok else "NOT ok"
        colour = "good bold" if results.ok else "bad bold"
        self._line(f"  {self.terminal.paint(word, colour)} after {results.seconds:.0f} s, {results.nodes} daemons")
        if report is not None:
            self._line(f"  the report: {report}")

    def kept(self, homes: Path) -> None:
        self._line(f"  the homes were kept: {homes}")

    def interrupted(self, *, kept: Path | None) -> None:
        """The one line after Ctrl-C. Told even when quiet."""
        self.terminal.close()
        if kept is None:
            self.terminal.line("Interrupted: every daemon is stopped, every file of theirs is removed.")
        else:
            self.terminal.line(f"Interrupted: every daemon is stopped, the homes were kept in {kept}")

    def failed(self, error: OrchdError) -> None:
        """An error, its number and the next step. Told even when quiet."""
        self.terminal.close()
        self.terminal.line(f"{self.terminal.paint('error', 'bad')} {error.code} {error.name}: {error.message}")
        self.terminal.line(f"  {error.hint}")

    @contextlib.contextmanager
    def working(self, label: str) -> Iterator[Progress]:
        """Progress under this label for as long as the block lasts."""
        try:
            yield self.terminal.progress(label)
        finally:
            self.terminal.finished(label)

    # ---- small words -----------------------------------------------------------------------------------------

    def _tell(self, paragraph: str, colour: str = "") -> None:
        if not self.quiet:
            self.terminal.text(paragraph, colour=colour)

    def _line(self, text: str) -> None:
        if not self.quiet:
            self.terminal.line(text)

    def _blank(self) -> None:
        self._line("")

    def _title(self, text: str) -> None:
        self._blank()
        self._line(f"  {self._bold(text)}")
        self._blank()

    def _heading(self, text: str) -> None:
        self._line(f"  {self._bold(text)}")

    def _bold(self, text: str) -> str:
        return self.terminal.paint(text, "bold")

    def _dim(self, text: str) -> str:
        return self.terminal.paint(text, "dim")

    def _who(self, node: str) -> str:
        return self.terminal.paint(node, {"A": "a bold", "B": "b bold", "average": "average bold"}.get(node, "bold"))

    def _verdict(self, good: bool) -> str:
        symbol = ("✓" if good else "✗") if self.terminal.is_unicode else ("ok" if good else "WRONG")
        return self.terminal.paint(symbol, "good" if good else "bad")


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def short(text_id: str) -> str:
    """An id as a person reads it: its prefix and eight characters."""
    prefix, _, rest = text_id.partition("_")
    return f"{prefix}_{rest[:8]}…"


def _source(kind: str) -> str:
    return {"chatgpt": "ChatGPT export", "openai": "JSONL file"}.get(kind, f"{kind} file")
