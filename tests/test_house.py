"""The floors of the house, read from every import, also those inside functions.

        6  cli demo
        5  daemon worker rpc …
        4  net  hub  train  average  serve  (none imports another)
        3  jobs  importers  lm         (none imports another)
        2  registry
        1  records
        0  errors config paths units identity

A file imports from its own room and from lower floors; the top floor is a client and knows only the ground and
`orchd.rpc.client`. When a better house is found, change the picture and this test in one commit.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "orchd"
MAX_FILE, MAX_FUNCTION = 600, 60  # lines
LISTS = frozenset({"orchd/errors.py"})
"""Flat lists, which nobody reads from top to bottom."""

GROUND = frozenset({"errors", "config", "paths", "identity", "units"})
NUMERIC = frozenset({"numpy", "msgspec"})


class Room(NamedTuple):
    """`floor`, and the libraries that its files may import besides the standard library."""

    floor: int
    libraries: frozenset[str]
    lowest_only: int | None = None
    """Where set: of the lower floors only those up to this one."""


TORCH = frozenset({"torch", "accelerate", "transformers", "peft", "tokenizers", "safetensors"})
ONNX = frozenset({"onnxruntime", "onnxscript"})
ROOMS = {
    "errors": Room(0, frozenset()),
    "paths": Room(0, frozenset()),
    "units": Room(0, frozenset()),
    "config": Room(0, frozenset({"msgspec"})),
    "identity": Room(0, frozenset({"cryptography"})),
    "records": Room(1, frozenset({"msgspec", "cryptography"})),
    "registry": Room(2, frozenset({"duckdb"}) | NUMERIC),
    "jobs": Room(3, frozenset({"trio", "msgspec"})),
    "importers": Room(3, frozenset({"msgspec"}), lowest_only=1),
    "lm": Room(3, TORCH | NUMERIC | {"mlx", "mlx_lm"}),
    "net": Room(4, frozenset({"libp2p", "multiaddr", "trio", "zeroconf", "msgspec", "cryptography"})),
    "hub": Room(4, frozenset({"trio", "httpx", "msgspec"})),
    "train": Room(4, TORCH | NUMERIC),
    "average": Room(4, NUMERIC),
    "serve": Room(4, TORCH | NUMERIC | ONNX | {"trio", "httpx", "h11", "gguf", "xllamacpp", "zstandard"}),
    "daemon": Room(5, frozenset({"trio"})),
    "deploying": Room(5, frozenset({"trio", "msgspec"})),
    "answering": Room(5, frozenset({"trio"})),
    "node": Room(5, frozenset({"trio", "msgspec"})),
    "environment": Room(5, frozenset({"trio", "msgspec", "packaging"})),
    "crafting": Room(5, frozenset()),
    "notes": Room(5, frozenset({"msgspec"})),
    "room": Room(5, frozenset()),
    "choosing": Room(5, frozenset()),
    "exporting": Room(5, frozenset({"trio", "msgspec"})),
    "made_bases": Room(5, frozenset({"msgspec"})),
    "measuring": Room(5, frozenset({"trio", "msgspec"})),
    "forgetting": Room(5, frozenset({"msgspec"})),
    "rollback": Room(5, frozenset({"trio", "msgspec"})),
    "routing": Room(5, frozenset({"trio", "msgspec"})),
    "leaks": Room(5, frozenset({"trio", "msgspec"})),
    "recipes": Room(5, frozenset({"trio", "msgspec"})),
    "federating": Room(5, frozenset({"trio", "msgspec"})),
    "federation_notes": Room(5, frozenset({"trio", "msgspec"})),
    "federation_work": Room(5, frozenset({"trio", "msgspec"})),
    "averaging": Room(5, frozenset({"trio", "msgspec"})),
    "judging": Room(5, NUMERIC),
    "gate": Room(5, frozenset({"trio", "msgspec"})),
    "updates": Room(5, frozenset({"trio", "msgspec"})),
    "worker": Room(5, frozenset({"msgspec"})),
    "upkeep": Room(5, frozenset({"trio"})),
    "resident": Room(5, frozenset({"trio"})),
    "log": Room(5, frozenset()),
    "notify": Room(5, frozenset()),
    "rpc": Room(5, frozenset({"trio", "msgspec"})),
    "cli": Room(6, frozenset()),
    "demo": Room(6, frozenset()),
}
CLIENT = "orchd.rpc.client"


class Import(NamedTuple):
    file: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(file: Path) -> list[str]:
    """`orchd/net/host.py` → ["orchd", "net", "host"]."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def room_of(file: Path) -> str | None:
    """The room's name; None for `orchd/__init__.py`, which holds the version alone."""
    parts = dotted(file)
    return parts[1] if len(parts) > 1 else None


def imports(file: Path) -> Iterator[Import]:
    """Every module that is imported, as an absolute name; of `from orchd import net` it is `orchd.net`."""
    package = dotted(file) if file.name == "__init__.py" else dotted(file)[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "orchd":
                yield from (Import(file, node.lineno, f"orchd.{alias.name}") for alias in node.names)
            else:
                yield Import(file, node.lineno, module)


def is_broken(found: Import) -> bool:
    """Whether this import goes up, or sideways into another room."""
    own = room_of(found.file)
    target = found.module.split(".")
    if own is None or target[0] != "orchd" or target[1:2] in ([], ["__version__"]):
        return False
    here, there = ROOMS[own], ROOMS[target[1]]
    if own == target[1]:
        return False
    if here.floor == 6:
        return not (there.floor in (0, 6) or found.module == CLIENT or found.module.startswith(CLIENT + "."))
    if here.floor == there.floor:
        return here.floor not in (0, 5)
    limit = here.floor - 1 if here.lowest_only is None else here.lowest_only
    return there.floor > limit


def test_every_file_stands_in_a_known_room() -> None:
    assert {room for file in files() if (room := room_of(file))} <= ROOMS.keys()


def test_no_import_goes_up_or_into_another_room() -> None:
    broken = [str(found) for file in files() for found in imports(file) if is_broken(found)]
    assert broken == []


def test_each_room_uses_the_libraries_of_its_own_field() -> None:
    strangers = []
    for file in files():
        room = room_of(file)
        allowed = ROOMS[room].libraries if room else frozenset()
        for found in imports(file):
            library = found.module.partition(".")[0]
            if library not in {"orchd", "__future__"} | sys.stdlib_module_names | allowed:
                strangers.append(str(found))
    assert strangers == []


@pytest.mark.parametrize(
    "line", ["from orchd.net import host", "def f():\n    import orchd.net.host", "from .. import net"]
)
def test_a_broken_floor_is_found(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: this test would see it, also inside a function and as a relative import."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "orchd" / "train" / "loop.py"
    file.parent.mkdir(parents=True)
    file.write_text(line)
    assert [is_broken(found) for found in imports(file)] == [True]


def loaded_by(statement: str) -> set[str]:
    """Top-level names in `sys.modules` after a statement in a fresh Python."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_daemon_never_imports_torch() -> None:
    """Really imported: the daemon and every method that it answers."""
    methods = [".".join(dotted(file)) for file in files() if room_of(file) == "rpc"]
    loaded = loaded_by(f"import orchd.daemon, {', '.join(methods)}")
    assert "trio" in loaded
    assert not loaded & {"torch", "transformers", "peft", "mlx", "xllamacpp", "gguf"}


def test_orchctl_loads_the_standard_library_only() -> None:
    loaded = loaded_by("import orchd.cli.main")
    assert not loaded & {"asyncio", "trio", "msgspec", "msgpack", "cryptography", "platformdirs", "duckdb", "numpy"}


def test_averaging_never_imports_torch() -> None:
    loaded = loaded_by("import orchd.average.worker, orchd.judging.job")
    assert not loaded & {"torch", "transformers", "peft"}


def test_no_file_is_too_long_to_read() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE and name not in LISTS} == {}


def test_no_function_is_too_long_to_read() -> None:
    long = []
    for file in files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert long == []
