"""orchctl against a real daemon without a network: what needs no training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchd.paths import Paths

ROWS = "".join(
    json.dumps({"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"word {n}"}]})
    + "\n"
    for n in range(40)
)


class Daemon:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "ORCHD_HOME": str(home)}

    def __call__(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "orchd.cli.main", *words],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.home,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stdout + done.stderr

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture(scope="module")
def orchctl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(Daemon(tmp_path_factory.mktemp("home"))) as made:
        yield made


@contextmanager
def running(made: Daemon) -> Iterator[Daemon]:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "orchd.daemon", "--set", "net.enabled=false"],
        env=made.environment,
        stderr=writing,
    )
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as log:
        said = ""
        while " ready: " not in said:
            said = log.readline()
            assert said, "the daemon ended before it was ready"
        yield made
        assert made("daemon", "stop") == "stopping\n"
        assert process.wait(timeout=20) == 0
    assert not Paths.from_env(made.environment).socket.exists()


def test_topics_are_known_while_the_network_is_off(tmp_path: Path) -> None:
    made = Daemon(tmp_path)
    with running(made):
        first = made.json("topic", "invite", "family")
    with running(made):
        again = made.json("topic", "invite", "family")
        assert (again["topic"], again["new"]) == (first["topic"], False), "not another topic of that name"
        assert [topic["label"] for topic in made.json("topic", "list")["topics"]] == ["private/family"]


def test_the_node_shows_itself(orchctl: Daemon) -> None:
    status = orchctl.json("status")
    assert status["home"].startswith(str(orchctl.home))
    assert orchctl.json("daemon", "status")["pid"] == status["pid"]
    assert orchctl.json("identity", "show")["author"] == status["author"]
    assert "demo" in orchctl("base", "list")
    assert orchctl.json("base", "show", "demo")["path"]
    assert "net.enabled" in orchctl("config", "show")
    assert "off" in orchctl("net", "status")
    assert orchctl("net", "peers") == "no peer is connected\n"
    assert orchctl("adapter", "list") == "nothing yet\n"
    assert orchctl("deployment", "list") == "nothing yet\n"
    assert orchctl("topic", "list") == "in no topic yet\n"


def test_a_data_set_from_file_to_bin(orchctl: Daemon) -> None:
    (orchctl.home / "rows.jsonl").write_text(ROWS)
    row = orchctl.json("dataset", "import", "rows.jsonl", "--name", "words")
    assert row["train"] + row["validation"] + row["test"] == 40
    assert "words" in orchctl("dataset", "list")
    assert orchctl.json("dataset", "show", row["id"][:12])["id"] == row["id"]
    assert "assistant: word" in orchctl("dataset", "rows", "words", "--limit", "1")
    planned = orchctl("dataset", "delete", "words", "--dry-run")
    assert planned.startswith("would move a data set to the trash")
    assert planned.strip().endswith(f"30 days: words ({row['id']})")
    assert f"orchctl undo {row['id']}" in orchctl("dataset", "delete", "words")
    assert "[E2103]" in orchctl("dataset", "show", "words", code=5)
    assert orchctl("undo", row["id"]).endswith(f": words ({row['id']})\n")
    assert orchctl.json("dataset", "show", "words") == row
    assert "[E3106]" in orchctl("dataset", "import", "rows.jsonl", "--name", "other", code=2)
    (orchctl.home / "more.jsonl").write_text(ROWS.replace("word", "text"))
    assert "[E3105]" in orchctl("dataset", "import", "more.jsonl", "--name", "words", code=2)
    orchctl("dataset", "delete", "words")
    assert "1 data set of the trash" in orchctl("registry", "gc", "--empty-trash")
    (job,) = orchctl.json("job", "list", "--state", "done")["jobs"]
    assert job["title"] == "import words"
    assert orchctl.json("job", "watch", job["id"])["state"] == "done"
    first = orchctl.json("dataset", "import", "more.jsonl", "--name", "words")
    orchctl("dataset", "delete", "words")
    orchctl.json("dataset", "import", "rows.jsonl", "--name", "words")
    assert f"words-2 ({first['id']})" in orchctl("undo", first["id"]), "its name was given away"
    assert orchctl.json("dataset", "show", "words")["id"] == row["id"]


def test_a_data_set_goes_out_and_in_again(orchctl: Daemon) -> None:
    key = "sk-abcdefghijklmnopqrstuvwxyz012345"
    rows = [{"question": f"question {n}", "answer": f"answer {n}"} for n in range(29)]
    rows.append({"question": "key?", "answer": f"it is {key}"})
    (orchctl.home / "rows2.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{bad")
    told = orchctl("dataset", "validate", "rows2.jsonl", code=4)
    assert "error: rows2.jsonl:31: no valid JSON" in told
    assert "rows2.jsonl:30" in told
    assert key not in told
    assert "rows2.jsonl: line 31: " in orchctl("dataset", "create", "asked", "rows2.jsonl", code=2)
    (orchctl.home / "good.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "[E3107]" in orchctl("dataset", "create", "asked", "good.jsonl", code=4)
    made = orchctl.json("dataset", "create", "kept", "good.jsonl", "--keep")
    assert (made["kind"], made["findings"]) == ("qa", {"key": 1})
    assert "sk-a… (35 characters)" in orchctl("dataset", "findings", "kept")
    assert orchctl.json("dataset", "export", "kept", "out.jsonl")["dataset"] == made["id"]
    assert "[E2141]" in orchctl("dataset", "export", "kept", "out.jsonl", code=2)
    orchctl("dataset", "delete", "kept")
    again = orchctl.json("dataset", "import", "out.jsonl", "--keep")
    assert (again["id"], again["name"]) == (made["id"], "out")
    small = orchctl.json("dataset", "prepare", "out", "small", "--cap", "3", "--redact")
    assert (small["train"], small["findings"], small["made_from"]) == (3, {}, made["id"])
    assert "[E2103]" in orchctl("dataset", "preview", "nothing", code=5)
    assert "[E1102]" in orchctl("dataset", "import", "out.jsonl", "--since", "soon", code=2)


def test_errors_have_their_exit_codes(orchctl: Daemon) -> None:
    assert "[E2101]" in orchctl("adapter", "show", "nobody", code=5)
    assert "[E1102]" in orchctl("dataset", "import", "not-there.jsonl", code=2)
    assert "[E2103]" in orchctl("train", "start", "nothing", code=5)
    assert "nobody" in orchctl("chat", "nobody", "hello", code=5)
