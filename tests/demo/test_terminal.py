from __future__ import annotations

import io

from orchd.demo.screen import Screen
from orchd.demo.terminal import Terminal


class Tty(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Plain(Tty):
    def isatty(self) -> bool:
        return False


class Ascii(Plain):
    encoding = "ascii"


def test_progress_is_drawn_on_a_terminal_and_taken_away() -> None:
    stream = Tty()
    terminal = Terminal(stream, {})
    terminal.progress("A trains")(62, 100, "steps")
    assert "A trains" in stream.getvalue()
    assert "62/100 steps" in stream.getvalue()
    terminal.line("told")
    terminal.finished("A trains")
    assert stream.getvalue().endswith("\r\x1b[2K")


def test_plain_stream_gets_lines_only() -> None:
    stream = Plain()
    terminal = Terminal(stream, {})
    terminal.progress("A trains")(62, 100, "steps")
    terminal.line(terminal.paint("told", "bold"))
    terminal.finished("A trains")
    assert stream.getvalue() == "told\n"


def test_no_color_keeps_the_progress() -> None:
    stream = Tty()
    terminal = Terminal(stream, {"NO_COLOR": "1"})
    terminal.line(terminal.paint("told", "bold"))
    assert stream.getvalue() == "told\n"
    assert terminal.is_terminal


def test_bar_has_its_length() -> None:
    assert len(Terminal(Plain(), {}).bar(0.5, 10)) == 5
    assert Terminal(Plain(), {}).bar(2.0, 10) == "█" * 10
    assert Terminal(Ascii(), {}).bar(0.5, 10) == "#####"


def test_characters_that_the_stream_lacks_do_not_break_the_story() -> None:
    stream = Ascii()
    Terminal(stream, {}).line("A → B")
    assert stream.getvalue() == "A ? B\n"


def test_warning_about_round_one_comes_first() -> None:
    stream = Plain()
    Screen(Terminal(stream, {})).opening(3)
    text = " ".join(stream.getvalue().split())
    assert "after round 1 the average will get 0-2 % of the exam right" in text


def test_quiet_tells_nothing_but_errors() -> None:
    stream = Plain()
    screen = Screen(Terminal(stream, {}), quiet=True)
    screen.opening(3)
    assert stream.getvalue() == ""
    screen.interrupted(kept=None)
    assert stream.getvalue().startswith("Interrupted: ")
