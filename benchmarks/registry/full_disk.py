"""Row `disk-full`: every path that writes, on a file system with no room; what was there must be there, and go on.

usage: python -m benchmarks.registry.full_disk [--quick] [PATH ...] — prints what came of it as JSON; makes a small
tmpfs in a mount namespace of its own (`unshare`), so it needs Linux and the right to do that. `--quick` takes larger
steps.

Each act is tried with no free page, then with one, two, … until it succeeds: so the disk is full once at every single
write of it. Each time the refusal must be `DiskFull`, everything must be as before, also while the disk is full, and
after there is room another act must work. `orchd` = what was lost or went wrong, `paths` = acts tried, `failures` =
times that the disk was full.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks.registry import old_home, small
from benchmarks.registry.small import BOB, ME, Facts, Offer
from benchmarks.report import Row
from benchmarks.start.daemon import running
from orchd.errors import DiskFull, OrchdError
from orchd.identity import Identity
from orchd.jobs import EventLog
from orchd.records import Announcement, Revocation, parse_id, sign
from orchd.records.ids import ADAPTER
from orchd.registry import Registry, blobs, exchange, index, local, rebuild, upkeep
from orchd.registry.local import put
from orchd.registry.local_rows import Deployment, JobRow, Rot, Trust
from orchd.registry.own import Deployments, Topics
from orchd.registry.trust import AUTHOR, BLOCK
from orchd.rpc.client import Client

SIZE = 32 << 20  # bytes of the file system
DAEMON_SIZE = 700 << 20  # with room for the daemon's reserves
PAGE = 4096
TIGHT = 4  # free pages below which every byte is used up
SMALL = 12  # free pages up to which each number is tried, then a third more each time
INSIDE, QUICK = "--inside", "--quick"


def rows() -> list[Row]:
    if not can_run():
        print("disk-full: this machine lets nobody mount a file system", file=sys.stderr)
        return []
    found = measured()
    for what in found.wrong:
        print(f"disk-full: {what}", file=sys.stderr)
    figures = {"paths": float(len(found.paths)), "failures": float(sum(found.paths.values()))}
    bad = len(found.wrong)
    return [Row("disk-full", "lost", bad, "none", None, None, "0", bad == 0, figures)]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """`paths`: how often each was refused. `wrong`: what should not have happened."""

    paths: dict[str, int]
    wrong: list[str]


def can_run() -> bool:
    """Whether this machine lets us mount a file system of our own."""
    tried = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]
    return (
        bool(shutil.which("unshare")) and not subprocess.run(tried, check=False, stderr=subprocess.DEVNULL).returncode
    )


def measured(*wanted: str) -> Measured:
    """What came of it, in a process that has the right to mount."""
    with tempfile.TemporaryDirectory(prefix="orchd-full-") as place:
        told = subprocess.run(
            ["unshare", "-rm", sys.executable, "-m", "benchmarks.registry.full_disk", INSIDE, place, *wanted],
            check=True,
            stdout=subprocess.PIPE,
        )
    return msgspec.json.decode(told.stdout, type=Measured)


class Disk:
    """A small file system below `root`, which a ballast fills."""

    def __init__(self, root: Path, size: int = SIZE) -> None:
        self.root = root
        self._ballast = root / "ballast"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root)], check=True)

    def fill(self, free_pages: int) -> None:
        """Leave that many pages free."""
        self.clear()
        with self._ballast.open("wb") as file:
            if (free := self._free() - free_pages * PAGE) > 0:
                os.posix_fallocate(file.fileno(), 0, free)

    def grow(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.root)], check=True)

    def clear(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def _free(self) -> int:
        facts = os.statvfs(self.root)
        return facts.f_bavail * facts.f_frsize

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.root)], check=True)


@dataclass
class Starved:
    """A registry on a disk that fills up. `wrong` is what should not have happened."""

    disk: Disk
    place: Path
    registry: Registry = field(init=False)
    paths: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    number: int = 0
    quick: bool = False

    def __post_init__(self) -> None:
        small.make_pool(self.place)
        self.data = self.disk.root / "data"
        self.open()
        self.pool = small.read_pool(self.place)
        mine = [offer for offer in self.pool.values() if offer.parent is None and offer.author == ME.author]
        self.mine: list[Offer] = mine
        for offer in mine[:4]:
            self.admit(offer)

    def open(self) -> None:
        self.registry = small.open_registry(self.place, self.data)

    def admit(self, offer: Offer) -> None:
        self.registry.admit(offer.envelope, offer.files, origin="fetched")

    # ---- trying ------------------------------------------------------------------------------------------------

    def fill(self, free_pages: int) -> None:
        """Leave so many pages free. Where it is few, what is left of the pages begun is used up before."""
        if free_pages < TIGHT:
            self.disk.fill(0)
            with suppress(DiskFull):
                while True:
                    self.number += 1
                    self.job(7)
        self.disk.fill(free_pages)

    def try_path(self, name: str, act: Callable[[], object], *may: str) -> None:
        """With the registry open: refused as often as the disk is full, then done.

        Facts that begin with `may` are written before the rest of the act, and may be there when it is refused.
        """
        refused = 0
        for free in self.steps():
            self.fill(free)
            before = self.seen()
            done = self.attempt(name, free, act)
            if not done:
                refused += 1
                self.compare(f"{name}, {free} pages free", before, may)
            self.disk.clear()
            if done:
                break
            self.works_again(name, free)
        else:
            self.wrong.append(f"{name} was never done")
        self.paths[name] = refused
        if not refused:
            self.wrong.append(f"{name} never met a full disk")
        self.reopen(name)

    def steps(self) -> Iterator[int]:
        """Free pages to try with."""
        free = 0
        while free * PAGE < SIZE // 2:
            yield free
            free = free * 8 + 1 if self.quick else free + 1 if free < SMALL else free * 4 // 3
        yield SIZE // 2 // PAGE

    def attempt(self, name: str, free: int, act: Callable[[], object]) -> bool:
        try:
            act()
        except DiskFull as error:
            if not error.hint:
                self.wrong.append(f"{name}: the refusal does not say what to do")
            return False
        except OrchdError as error:
            self.wrong.append(f"{name}, {free} pages free: {type(error).__name__}: {error}")
            return False
        except Exception as error:
            self.wrong.append(f"{name}, {free} pages free: {type(error).__name__}: {error} {_where(error)}")
            return False
        return True

    def seen(self) -> Facts:
        """Everything the registry says about itself."""
        return small.facts(self.registry) | {f"state {id}": state for id, state in small.states(self.registry).items()}

    def compare(self, where: str, before: Facts, may: tuple[str, ...] = ()) -> None:
        try:
            after = self.seen()
        except Exception as error:
            self.wrong.append(f"{where}: it can't be read: {type(error).__name__}: {error} {_where(error)}")
            return
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key) and not key.startswith(may):
                self.wrong.append(f"{where}: {key} is {after.get(key)!r}, was {before.get(key)!r}")

    def works_again(self, name: str, free: int) -> None:
        """There is room: another act is done."""
        self.number += 1
        if not self.attempt(f"after {name}", free, lambda: self.job(self.number)):
            self.wrong.append(f"{name}, {free} pages free: nothing works afterwards")
            self.reopen(name)

    def reopen(self, name: str) -> None:
        """The next start finds everything, and nothing half."""
        before = self.seen()
        self.registry.close()
        self.open()
        self.compare(f"{name}, after the next start", before)
        self.wrong += [f"{name}: {what}" for what in small.half(self.registry) + small.left_over(self.data)]
        self.wrong += [f"{name}: {notice}" for notice in self.registry.notices]

    def try_start(self, name: str, prepare: Callable[[], None], known: Facts | None = None) -> None:
        """With the registry closed by `prepare`: opening it is refused as often as the disk is full."""
        before = self.seen()
        self.registry.close()
        prepare()
        refused = 0
        for free in self.steps():
            self.disk.fill(free)
            done = self.attempt(name, free, self.open)
            self.disk.clear()
            if done:
                break
            refused += 1
        self.paths[name] = refused
        if not refused:
            self.wrong.append(f"{name} never met a full disk")
        if known is None:
            self.compare(f"{name}, after the start", before)
        else:
            found = small.facts(self.registry)
            lost = [key for key, value in known.items() if found.get(key) != value]
            self.wrong += [f"{name}: {key} was lost" for key in lost]
        self.wrong += [f"{name}: {what}" for what in small.half(self.registry) + small.left_over(self.data)]

    # ---- acts --------------------------------------------------------------------------------------------------

    def job(self, number: int) -> None:
        row = JobRow(
            id=f"job-{number}",
            kind="train",
            state="done",
            title="t" * (number % 977),
            spec="{}",
            result=None,
            error=None,
            created=small.clock(),
            started=None,
            finished=None,
        )
        self.registry.local.act("job.done", put(row))

    def trust(self) -> None:
        row = Trust(subject=BOB.author, kind=AUTHOR, verdict=BLOCK, note="", auto_update=False, since=small.clock())
        self.registry.local.act("trust.block", put(row), undoable=True)
        self.registry.people.forget()
        self.registry.restand()

    def announce(self) -> None:
        def make(seq: int) -> object:
            record = Announcement(
                manifest=parse_id(self.mine[0].id, ADAPTER),
                topics=("topic",),
                size=1,
                created_ms=small.clock(),
                base=bytes(32),
                author=ME.public_key,
                seq=seq,
            )
            return sign(record, ME)

        self.registry.announce(make, "peer")  # type: ignore[arg-type]

    def revoke(self) -> None:
        record = Revocation(
            manifest=parse_id(self.mine[3].id, ADAPTER),
            reason="wrong",
            created_ms=small.NOW_MS,
            author=ME.public_key,
        )
        self.registry.news.take(sign(record, ME), "")

    def deploy(self) -> None:
        with self.registry.blobs.writer(3 * PAGE) as writer:
            writer.write(bytes(3 * PAGE))
            blob = writer.commit().hex()
        row = Deployment(
            name="first",
            adapter=None,
            target="embedded",
            state="ready",
            base="tiny",
            blob=blob,
            size=3 * PAGE,
            quantize="",
            parity=None,
            created=small.clock(),
        )
        Deployments(self.registry.local).put(row)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return "at " + " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))


# ---- the paths -----------------------------------------------------------------------------------------------------


def all_paths(starved: Starved) -> dict[str, Callable[[], None]]:
    """Each by its name."""

    def path(name: str, act: Callable[[], object], *may: str) -> tuple[str, Callable[[], None]]:
        return name, lambda: starved.try_path(name, act, *may)

    registry = lambda: starved.registry  # noqa: E731  (another one after each start)
    topics = lambda: Topics(registry().local, small.clock)  # noqa: E731
    mine, place = starved.mine, starved.place
    bundle = starved.disk.root / "one.orchpack"

    def blob() -> None:
        registry().blobs.put_file(mine[0].folder / "envelope")

    return dict(
        [
            path("blob", blob),
            path("admit", lambda: starved.admit(mine[4]), "verdict", "bound", "state"),
            path("pin", lambda: registry().pin(mine[0].id)),
            path("remove", lambda: registry().remove(mine[0].id), "trash"),
            path("undo", lambda: registry().undo(), "trash"),
            path("block", starved.trust, "trust"),
            path("revoke", starved.revoke, "revoked"),
            path("announce", starved.announce),
            path("topic", lambda: topics().add("one")),
            path("deployment", starved.deploy),
            path("job", lambda: starved.job(0)),
            path("base add", lambda: registry().known_bases.add("another", place / "base")),
            path("export", lambda: exchange.export(registry(), mine[1].id, bundle, replace=True)),
            ("import", lambda: _import(starved, bundle)),
            ("rot", lambda: _rot(starved)),
            ("trash emptied", lambda: _trash(starved)),
            path("backup", lambda: upkeep.backup(registry())),
            path("rebuild", lambda: rebuild.rebuild(registry())),
            ("journal written anew", lambda: _compaction(starved)),
            ("checkpoint", lambda: _checkpoint(starved)),
            ("backup restored", lambda: _restore(starved)),
            ("index made again", lambda: starved.try_start("index made again", lambda: _lose_index(starved))),
            ("migration", lambda: _migration(starved)),
            ("first start", lambda: _first_start(starved)),
            ("key", lambda: _key(starved)),
            ("events", lambda: _events(starved)),
            ("reserves", lambda: _reserves(starved)),
            ("daemon", lambda: _daemon(starved)),
        ]
    )


def _import(starved: Starved, bundle: Path) -> None:
    offer = starved.mine[1]
    exchange.export(starved.registry, offer.id, bundle, replace=True)
    starved.registry.remove(offer.id)
    upkeep.collect(starved.registry, empty_trash=True)
    for entry in offer.files.values():
        starved.registry.blobs.remove(_digest(entry))
    if any(offer.id in key for key in starved.seen() if not key.startswith("received")):
        starved.wrong.append("import: the adapter is still here")
    other = [path for path in offer.files.values() if not starved.registry.blobs.has(_digest(path))]
    assert other
    for one in starved.mine[:5]:  # the config is everybody's
        with suppress(OrchdError):
            starved.registry.blobs.put_file(one.files["adapter_config.json"])
    starved.try_path("import", lambda: exchange.take_in(starved.registry, bundle), "verdict", "bound", "state")


def _digest(path: Path) -> bytes:
    import hashlib

    return hashlib.sha256(path.read_bytes()).digest()


def _rot(starved: Starved) -> None:
    """A damaged file is found, and set aside."""
    blob = starved.registry.blobs.path(_digest(starved.mine[2].files["adapter_model.safetensors"]))
    whole = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    before = len(starved.wrong)
    starved.try_path("rot", lambda: upkeep.scrub(starved.registry))
    half = [what for what in starved.wrong[before:] if "rotten" in what or "not here" in what or "gone" in what]
    starved.wrong[before:] = [what for what in starved.wrong[before:] if what not in half]
    starved.try_path("mending", lambda: starved.admit(starved.mine[2]), "rot")
    (starved.data / "blobs" / "rotten" / blob.name).unlink()
    starved.wrong[before:] = [what for what in starved.wrong[before:] if "rotten" not in what]
    if starved.registry.local.all(Rot):
        starved.wrong.append("rot: it was not mended")


def _trash(starved: Starved) -> None:
    starved.registry.remove(starved.mine[4].id)

    starved.fill(0)
    starved.paths["trash emptied"] = 1
    starved.attempt("trash emptied", 0, lambda: upkeep.collect(starved.registry, empty_trash=True))
    starved.disk.clear()
    if not starved.attempt("trash emptied", -1, lambda: upkeep.collect(starved.registry, empty_trash=True)):
        starved.wrong.append("trash emptied: not when there is room either")
    starved.reopen("trash emptied")


def _checkpoint(starved: Starved) -> None:
    """Acts until the database writes its log into its file; the disk has room for the log alone."""
    starved.registry.close()
    index.SETTINGS["checkpoint_threshold"] = "64KB"
    starved.open()

    def act() -> None:
        for _ in range(40):
            starved.number += 1
            starved.job(starved.number * 977 + 976)

    try:
        _many(starved, "checkpoint", act)
    finally:
        starved.registry.close()
        del index.SETTINGS["checkpoint_threshold"]
        starved.open()


def _many(starved: Starved, name: str, act: Callable[[], None]) -> None:
    """As `try_path`, for an act of which a part may be done: what was there before must still be."""
    refused = 0
    for free in starved.steps():
        starved.fill(free)
        before = starved.seen()
        done = starved.attempt(name, free, act)
        refused += not done
        after = starved.seen()
        starved.wrong += [f"{name}: {key} was lost" for key in before if before[key] != after.get(key)]
        starved.disk.clear()
        if done:
            break
        starved.works_again(name, free)
    starved.paths[name] = refused
    starved.reopen(name)


def _compaction(starved: Starved) -> None:
    for _ in range(300):
        starved.number += 1
        starved.job(1)
    before = starved.registry.local.journal_bytes

    def prepare() -> None:
        local.COMPACT_SIZE = 1

    facts = starved.seen()
    prepare_and_start = (starved.registry.close, prepare, lambda: starved.disk.fill(0), starved.open)
    for step in prepare_and_start:
        step()
    starved.compare("journal written anew, without room", facts)
    if starved.registry.local.journal_bytes < before:
        starved.wrong.append("journal written anew: there was room")
    starved.disk.clear()
    starved.reopen("journal written anew")
    starved.compare("journal written anew", facts)
    local.COMPACT_SIZE = 4 << 20
    starved.paths["journal written anew"] = 1
    if starved.registry.local.journal_bytes >= before:
        starved.wrong.append("journal written anew: it was not")


def _lose_index(starved: Starved) -> None:
    for file in starved.data.glob("registry.db*"):
        file.unlink()


def _restore(starved: Starved) -> None:
    upkeep.backup(starved.registry)
    topics = Topics(starved.registry.local, small.clock)
    topics.add("after the backup")
    before = starved.seen()

    def prepare() -> None:
        (starved.data / "registry.db").write_bytes(b"x" * 20_000)

    starved.try_start("backup restored", prepare)
    starved.compare("backup restored", before)
    if "took its place" not in starved.registry.rebuilt:
        starved.wrong.append(f"backup restored: {starved.registry.rebuilt}")


def _migration(starved: Starved) -> None:
    known: Facts = {}

    def prepare() -> None:
        subprocess.run(["rm", "-rf", str(starved.data)], check=True)
        known.update(old_home.make(starved.place, starved.data, 1.0))

    starved.try_start("migration", prepare, known)


def _first_start(starved: Starved) -> None:
    def prepare() -> None:
        subprocess.run(["rm", "-rf", str(starved.data)], check=True)

    starved.try_start("first start", prepare, {})


def _key(starved: Starved) -> None:
    """The node's key: none, or a whole one."""
    folder = starved.disk.root / "keys"
    file = folder / "identity.pem"
    refused = 0
    for free in starved.steps():
        starved.disk.fill(free)
        done = starved.attempt("key", free, lambda: Identity.load_or_create(file))
        starved.disk.clear()
        if done:
            break
        refused += 1
        if folder.exists() and list(folder.iterdir()):
            starved.wrong.append(f"key, {free} pages free: {sorted(folder.iterdir())} was left")
    starved.paths["key"] = refused
    if not refused:
        starved.wrong.append("key never met a full disk")


def _events(starved: Starved) -> None:
    """Events are let go rather than the daemon; those before and after are whole."""
    log = EventLog(starved.disk.root / "state", small.clock)
    log.emit("topic.joined", {"topic": "before"})
    starved.disk.fill(0)
    for number in range(200):
        log.emit("topic.joined", {"topic": "x" * 100, "number": number})
    starved.disk.clear()
    log.emit("topic.joined", {"topic": "after"})
    log.close()
    again = EventLog(starved.disk.root / "state", small.clock)
    kept = [event.data["topic"] for event in again.read(0, again.last)]
    again.close()
    starved.paths["events"] = 1
    if kept[:1] != ["before"] or kept[-1:] != ["after"]:
        starved.wrong.append(f"events: {kept[:1]} … {kept[-1:]} are kept")


def _reserves(starved: Starved) -> None:
    """With the reserves that a daemon has, nothing even begins."""
    blobs.DISK_RESERVE, local.RESERVE = 8 << 20, 1 << 20
    acts = {
        "blob": (1000, lambda: starved.registry.blobs.put_file(starved.pool[starved.mine[0].id].folder / "envelope"))
    }
    acts["act"] = (200, lambda: starved.job(1))
    for name, (free, act) in acts.items():
        starved.disk.fill(free)
        before = starved.seen()
        if starved.attempt(f"reserve for {name}", free, act):
            starved.wrong.append(f"the reserve for {name} was used")
        starved.compare(f"reserve for {name}", before)
        starved.disk.clear()
        if not starved.attempt(f"reserve for {name}", 0, act):
            starved.wrong.append(f"the reserve for {name} is kept although there is room")
    blobs.DISK_RESERVE = local.RESERVE = 0
    starved.paths["reserves"] = len(acts)


def _daemon(starved: Starved) -> None:
    """A real daemon on the full disk answers, refuses, stays up, and goes on when there is room."""
    starved.disk.grow(DAEMON_SIZE)
    home = starved.disk.root / "home"
    home.mkdir()
    with running(home) as daemon, Client(daemon.socket) as client:
        starved.disk.fill(0)
        calls = (
            ("topic.join", {"topic": "one"}),
            ("trust.block", {"subject": BOB.author}),
            ("trust.policy", {"quarantine": "strangers"}),
            ("registry.backup", {}),
            ("identity.rotate", {}),
        )
        refused = 0
        for method, params in calls:
            before = client.call("trust.list"), client.call("topic.list"), client.call("identity.show")
            starved.disk.fill(0)
            if starved.attempt(f"daemon: {method}", 0, lambda m=method, p=params: client.call(m, **p)):  # type: ignore[misc]
                starved.wrong.append(f"daemon: {method} was done without room")
            refused += 1
            after = client.call("trust.list"), client.call("topic.list"), client.call("identity.show")
            if before != after:
                starved.wrong.append(f"daemon: {method} was refused, and changed something")
            starved.disk.clear()
            if not starved.attempt(f"daemon: {method}", -1, lambda m=method, p=params: client.call(m, **p)):  # type: ignore[misc]
                starved.wrong.append(f"daemon: {method} does not work again")
        starved.paths["daemon"] = refused
        if client.call("daemon.status")["pid"] != daemon.pid:
            starved.wrong.append("daemon: another one answers")


@contextmanager
def _starved(place: Path, quick: bool) -> Iterator[Starved]:
    blobs.DISK_RESERVE = local.RESERVE = 0  # or they would refuse long before the disk is full
    root = place / "disk"
    root.mkdir()
    disk = Disk(root)
    try:
        starved = Starved(disk, place, quick=quick)
        yield starved
        starved.registry.close()
    finally:
        disk.unmount()


def main(place: Path, wanted: list[str]) -> None:
    names = [name for name in wanted if name != QUICK]
    with _starved(place, QUICK in wanted) as starved:
        for name, work in all_paths(starved).items():
            if not names or name in names:
                try:
                    work()
                except Exception as error:
                    starved.wrong.append(f"{name}: {type(error).__name__}: {error} {_where(error)}")
                    starved.disk.clear()
    print(json.dumps({"paths": starved.paths, "wrong": starved.wrong}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == [INSIDE]:
        main(Path(sys.argv[2]), sys.argv[3:])
    else:
        print(msgspec.json.format(msgspec.json.encode(measured(*sys.argv[1:]))).decode())
