"""What people read: tables, bars, times."""

from __future__ import annotations

import argparse
import io
from json import loads
from pathlib import Path
from typing import Any, TextIO

import pytest

from orchd.cli import main, text
from orchd.cli.context import Context
from orchd.cli.nouns.adapter import human_scan, list_adapters
from orchd.cli.nouns.adapter_scores import human_scores
from orchd.cli.nouns.completion import script
from orchd.cli.nouns.config import show as show_settings
from orchd.cli.nouns.events import human
from orchd.cli.nouns.job import STARTED_BY, human_row
from orchd.cli.progress import Bar, Sparkline
from orchd.cli.run import load, parser
from orchd.errors import UsageInvalid


class Screen(io.StringIO):
    """A terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def written(stream: TextIO) -> str:
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


class Answering(Context):
    """At a daemon with these answers."""

    def __init__(self, answers: dict[str, Any], *, json: bool = False, quiet: bool = False) -> None:
        super().__init__(json=json, quiet=quiet, out=io.StringIO(), err=io.StringIO(), environ={})
        self.answers = answers

    def call(self, method: str, **params: Any) -> Any:
        return self.answers[method]


def test_tables_align_numbers_to_the_right() -> None:
    shown = text.table(("name", "rows"), [("a", 5), ("long", 1234)])
    assert shown.splitlines() == ["NAME  ROWS", "a        5", "long  1234"]
    assert text.table(("name",), []) == "nothing yet"
    assert text.table(("a", "b"), [(None, "x")]).splitlines()[1] == "   x"


def test_fields_leave_out_what_is_empty_and_indent_what_is_long() -> None:
    shown = text.fields([("name", "x"), ("gone", None), ("list", "a\nb"), ("zero", 0)])
    assert shown == "name  x\nlist  a\n      b\nzero  0"


def test_an_outline_shows_any_result_for_people() -> None:
    result = {
        "adapter": {"name": "x", "reason": "", "lineage": {"leaves": [{"id": "a", "weight": 0.5}, {"id": "b"}]}},
        "topics": ["one", "two"],
        "cosines": [[1.0, 0.25], [0.25, 1.0]],
        "held": True,
        "detail": "two\nlines",
        "none": None,
    }
    assert text.outline(result).splitlines() == [
        "adapter",
        "  name    x",
        "  lineage",
        "    leaves",
        "      - id      a",
        "        weight  0.5",
        "      - id  b",
        "topics  one, two",
        "cosines",
        "  - 1, 0.25",
        "  - 0.25, 1",
        "held    yes",
        "detail  two",
        "        lines",
    ]
    assert text.outline({"created_ms": 1_800_000_000_000}) == f"created_ms  {text.when(1_800_000_000_000)}"
    assert text.outline(None) == ""


@pytest.mark.parametrize(("verdict", "lines"), [("unknown", 3), ("alike", 7)])
def test_modules_of_which_nothing_is_known_take_one_line(verdict: str, lines: int) -> None:
    module: dict[str, Any] = {"verdict": verdict, "module": "q", "known": None, "unlike": [], "figures": {}}
    figures = {"norm": 1.0, "largest": 1.0, "share": 1.0, "effective_rank": 1.0}
    scan = {
        "verdict": verdict,
        "reason": "why",
        "compared": [],
        "note": "",
        "modules": [{**module, "figures": figures}] * 3,
    }
    shown = human_scan({"scan": scan}).splitlines()
    assert (len(shown), "3 modules" in shown[-1]) == (lines, verdict == "unknown")


def test_a_job_shows_its_result_as_fields() -> None:
    job = {"id": "job_1", "title": "evaluate", "kind": "other", "state": "done", "progress": None, "error": None}
    times = {"created_ms": None, "started_ms": None, "finished_ms": None}
    shown = human_row({**job, **times, "result": {"rows": [{"name": "x", "loss": 0.5}]}})
    assert shown.splitlines()[-3:] == ["result  rows", "          - name  x", "            loss  0.5"]


def test_a_job_shows_its_result_as_its_command_does() -> None:
    job = {"id": "job_1", "title": "keep", "kind": "rebuild", "state": "done", "progress": None, "error": None}
    times = {"created_ms": None, "started_ms": None, "finished_ms": None}
    shown = human_row({**job, **times, "result": {"put_back": 2, "taken_out": 0}})
    assert shown.endswith("\n\n2 adapters put into the index, 0 taken out of it")
    assert "result  put_back  2" in human_row({**job, **times, "result": {"put_back": 2}})


def test_every_kind_of_job_has_its_command() -> None:
    found = [command for noun, verb in STARTED_BY.values() for command in load(noun) if command.verb == verb]
    assert len(found) == len(STARTED_BY)
    assert all(command.job for command in found)


def test_after_a_job_the_next_step_is_told() -> None:
    row = {"name": "my style", "target": "embedded", "adapter": {"name": "my style"}, "rows": []}
    told = {
        command.method: command.then(row)
        for noun in ("dataset", "train", "average", "deploy")
        for command in load(noun)
        if command.then
    }
    assert sorted(told) == [
        *("average.start", "dataset.create", "dataset.import", "dataset.prepare", "deploy.start"),
        *("train.continue_from", "train.resume", "train.start"),
    ]
    assert "`orchctl chat 'my style'`" in told["deploy.start"]
    assert "`orchctl train start 'my style'`" in told["dataset.import"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, ""), (1.25, "1.2 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(None, ""), (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (7e15, "7000.0 TB")],
)
def test_sizes(count: float | None, shown: str) -> None:
    assert text.size(count) == shown


def test_short_ids_keep_their_kind() -> None:
    assert text.short("adp_abcdefghijklmnop") == "adp_abcdefghij"
    assert text.short(None) == ""


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_it_is_not_wanted(environ: dict[str, str]) -> None:
    assert text.painted("x", "red", Screen(), environ) == "x"
    assert text.painted("x", "red", Screen(), {}) == "\x1b[31mx\x1b[0m"
    assert text.painted("x", "red", io.StringIO(), {}) == "x"


def test_the_bar_is_redrawn_ten_times_a_second_and_fits_its_line() -> None:
    screen, now = Screen(), [0.0]
    bar = Bar("train.start", screen, monotonic=lambda: now[0], columns=lambda: 70)
    for done in range(1, 101):
        now[0] += 0.01
        bar.update({"done": done, "total": 100, "unit": "steps", "eta_s": 3.2, "figures": {"loss": 1.23456}})
    drawn = screen.getvalue().split("\r\x1b[K")[2:]
    assert 9 <= len(drawn) <= 12
    assert all(len(line) < 70 for line in drawn)
    assert drawn[-1].startswith("train.start  " + "█" * 24 + "  100/100 steps  ▁▁▁▁▁▁▁▁▁▁▁▁  ")
    bar.clear()
    assert screen.getvalue().endswith("\r\x1b[K")


def test_the_bar_counts_bytes_and_survives_odd_numbers() -> None:
    bar = Bar("fetch", Screen())
    assert "1.5 MB of 3.0 MB" in bar.line({"done": 1.5e6, "total": 3e6, "unit": "bytes", "figures": {}})
    assert "0/0 rows" in bar.line({"done": 0, "total": 0, "unit": "rows"})
    assert "█" * 24 in bar.line({"done": 9, "total": 3, "unit": "rows", "figures": {"part": "test"}})


@pytest.mark.parametrize("count", [5, 12, 23, 24, 100, 1000])
def test_a_sparkline_shows_the_whole_curve_in_few_columns(count: int) -> None:
    spark = Sparkline("0123456789")
    assert spark.text() == ""
    for number in range(count):
        spark.add(count - number)
    shown = spark.text()
    assert len(shown) == min(count, 12)
    assert shown == "".join(sorted(shown, reverse=True))
    assert (shown[0], shown[-1]) == ("9", "0")


def test_the_bar_of_a_training_shows_its_losses_and_its_phase() -> None:
    bar = Bar("train x", Screen())
    figures = {"phase": "training", "epoch": 1.5, "loss": 3.0, "rate": 0.01, "validation": 2.5}
    for loss in (3.0, 2.0, 1.0):
        bar.update({"done": 1, "total": 9, "unit": "steps", "figures": {**figures, "loss": loss}})
    assert bar.line({"done": 1, "total": 9, "unit": "steps", "figures": figures}).endswith(
        "█▅▁  loss 3  validation 2.5"
    )
    scoring = {"phase": "scoring", "loss": 3.0}
    assert bar.line({"done": 9, "total": 9, "unit": "steps", "figures": scoring}).endswith("█▅▁  scoring  loss 3")


@pytest.mark.parametrize(("json", "quiet", "screen"), [(True, False, True), (False, True, True), (False, False, False)])
def test_no_bar_where_nobody_would_see_it(json: bool, quiet: bool, screen: bool) -> None:
    context = Context(json=json, quiet=quiet, out=io.StringIO(), err=Screen() if screen else io.StringIO(), environ={})
    assert context.bar("x") is None


def test_scores_name_their_adapters() -> None:
    loss = {"metric": "loss", "value": 0.5, "low": None, "high": None, "examples": 3}
    row = {"measures": [loss], "labels": [], "examples": 3, "first_token_ms": None, "tokens_s": None, "memory": 0}
    rows = [{"id": None, "name": None, **row}, {"id": "adp_abc", "name": "mine", **row}]
    result: dict[str, Any] = {"rows": rows, "split": "test", "comparisons": [], "asked": 0}
    assert [line.split() for line in human_scores(result).splitlines()[:2]] == [
        ["BASE", "MINE"],
        ["loss", "0.500", "0.500"],
    ]
    rows.append({"id": "adp_xyz", "name": "mine", **row})
    assert human_scores(result).splitlines()[0].split() == ["BASE", "MINE", "ADP_ABC", "MINE", "ADP_XYZ"]


@pytest.mark.parametrize(("words", "noted"), [({}, True), ({"json": True}, False), ({"quiet": True}, False)])
@pytest.mark.parametrize("topic", ["joined", "not joined"])
@pytest.mark.parametrize("peers", [[], [{"peer": "12D3"}]])
def test_a_topic_where_nothing_can_be_heard_is_said_to_be_one(
    words: dict[str, bool], noted: bool, topic: str, peers: list[dict[str, str]]
) -> None:
    context = Answering(
        {
            "adapter.list": {"adapters": [], "announced": [], "here": 0, "offered": 0},
            "topic.list": {"topics": [{"name": "joined/tag", "label": "joined"}]},
            "net.peers": {"peers": peers},
        },
        **words,
    )
    list_adapters(context, argparse.Namespace(), {"topic": topic})
    told = written(context.err)
    assert ("orchctl topic join 'not joined'" in told) == (noted and topic == "not joined")
    assert ("0 peers are connected" in told) == (noted and topic == "joined" and not peers)
    assert noted or not told


def test_settings_are_shown_without_a_daemon(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[net]\nmdns = false\n")
    environ = {"ORCHD_HOME": str(tmp_path), "ORCHD_JOBS__THREADS": "3"}
    context = Context(json=True, quiet=False, out=io.StringIO(), err=io.StringIO(), environ=environ)
    show_settings(context, argparse.Namespace(), {})
    shown = {row["key"]: row for row in loads(written(context.out))["settings"]}
    assert (shown["net.mdns"]["value"], shown["net.mdns"]["origin"]) == (False, str(tmp_path / "config.toml"))
    assert (shown["jobs.threads"]["value"], shown["jobs.threads"]["origin"]) == (3, "$ORCHD_JOBS__THREADS")
    assert all(row["meaning"] for row in shown.values())
    assert shown["net.bootstrap"]["value"] == []
    assert "not running" in written(context.err)


def test_events_on_a_line() -> None:
    event = {
        "seq": 7,
        "time_ms": 0,
        "kind": "job.progress",
        "job": "job_1",
        "data": {"done": 3, "figures": {"loss": 1.23456}},
    }
    assert human(event).split("  ")[1:] == ["7", "job.progress", "job_1", "done=3 figures=loss:1.235"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_names_nouns_and_verbs(shell: str) -> None:
    made = script(shell)
    assert "status demo base" in made
    assert "list show watch cancel logs" in made


@pytest.mark.parametrize(
    ("topic", "peers", "alone"), [("ours", 0, True), ("ours", 1, False), ("private/us/x", 0, False)]
)
def test_who_joins_a_topic_alone_is_told(topic: str, peers: int, alone: bool) -> None:
    """An invitation holds addresses, which are still being tried."""
    join = next(command for command in load("topic") if command.verb == "join")
    called = "private/us" if topic == "private/us/x" else topic
    assert join.human({"topic": topic, "peers": peers}).partition(";")[0] == f"joined {called}"
    assert ("orchctl net connect" in join.human({"topic": topic, "peers": peers})) == alone


def test_ctrl_c_while_a_command_is_being_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(given: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_main", interrupted)
    assert main.main(["status"]) == 130


def test_the_help_says_what_ctrl_c_does_at_the_prompt() -> None:
    (chat,) = load("chat")
    assert "leaves\nwhere no answer is being written" in chat.more


@pytest.mark.parametrize(
    ("option", "given", "value"),
    [
        ("--early-stopping", "5", {"enabled": True, "patience": 5, "min_delta": 0.0}),
        ("--early-stopping", "3,0.01", {"enabled": True, "patience": 3, "min_delta": 0.01}),
        ("--early-stopping", "soon", None),
        ("--checkpointing", "100", {"interval": 100}),
        ("--checkpointing", "0,7", {"interval": 0, "keep_best": 7}),
        ("--checkpointing", "off", {"enabled": False}),
        ("--checkpointing", "often", None),
    ],
)
def test_settings_of_several_parts(option: str, given: str, value: dict[str, Any] | None) -> None:
    words = ["start", "data", option, given]
    if value is None:
        with pytest.raises(UsageInvalid, match=f"{option}: '{given}' is not like"):
            parser("train").parse_args(words)
    else:
        assert getattr(parser("train").parse_args(words), option[2:].replace("-", "_")) == value
