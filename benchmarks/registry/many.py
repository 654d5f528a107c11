"""A data folder with a hundred thousand adapters of two thousand authors, as a node would have it after some years.

Every manifest is signed and has its blobs (tiny ones) and its verdict in the journal; there is no index yet. All comes
from a seed. Made once into the machine's temporary folder, then given out as hard links. `fill_announcements` puts
what peers would have told into an open registry: that is in no journal.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import shutil
import tempfile
import uuid
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from orchd.identity import Identity
from orchd.records import AdapterInfo, BaseRef, FileEntry, Leaf, Lineage, Manifest, Metric, Training, sign, text_id
from orchd.records.ids import BASE
from orchd.registry.index import Index
from orchd.registry.journal import Journal, Line
from orchd.registry.local_rows import Verdict
from orchd.registry.rebuild import refresh_topics
from orchd.registry.registry import Registry

COUNT, SEED = 100_000, 0
NOW_MS = 1_800_000_000_000
YEARS_MS = 2 * 365 * 86_400_000
AUTHORS, BASES, TOPICS, VOCABULARY = 2_000, 40, 50, 2_000
JOURNAL_BATCH = 5_000
ANNOUNCED = 0.5
MODULES = (
    ("q_proj", "v_proj"),
    ("k_proj", "o_proj", "q_proj", "v_proj"),
    ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"),
)
LICENCES = ("Apache-2.0", "MIT", "CC0-1.0", "CC-BY-4.0", "")
SYLLABLES = ("ba", "den", "kir", "lo", "mu", "nor", "pex", "ri", "sal", "tu", "vor", "zen", "ma", "quil", "eth", "shi")


def me() -> Identity:
    """The node whose data folder it is: the most productive of the authors."""
    return _author(0)


@contextmanager
def data_folder(count: int = COUNT, seed: int = SEED) -> Iterator[Path]:
    """A data folder of one's own, thrown away afterwards."""
    made = _made(count, seed)
    with tempfile.TemporaryDirectory(prefix="orchd-many-", dir=made.parent) as folder:
        data = Path(folder) / "data"
        for name in ("manifests", "blobs"):
            shutil.copytree(made / name, data / name, copy_function=os.link)
        shutil.copyfile(made / "journal.log", data / "journal.log")
        yield data


def fill_announcements(registry: Registry, seed: int = SEED) -> None:
    """Half of all adapters are announced, each under one of `TOPICS`."""
    rng = random.Random(seed + 1)
    rows: list[tuple[object, ...]] = []
    for id, author, base, size, created in registry.index.read(
        "SELECT digest, author, base, size, created FROM adapter ORDER BY digest"
    ):
        if rng.random() < ANNOUNCED:
            digest = text_id("ann_", rng.randbytes(32))
            topics = [f"topic/{_zipf(rng, TOPICS)}"]
            rows.append((digest, id, topics, author, len(rows), size, base, "peer", created, created, b""))
    registry.index.write(lambda cursor: Index.append(cursor, "announcement", rows))
    refresh_topics(registry.index)


# ---- making them ----------------------------------------------------------------------------------------------------


def _made(count: int, seed: int) -> Path:
    """The cached folder; its name changes with this file."""
    form = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"orchd-many-{count}-{seed}-{form}" / "made"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        making = folder.with_name(f"making-{uuid.uuid4().hex}")
        try:
            _make(making, count, seed)
            making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder


def _make(folder: Path, count: int, seed: int) -> None:
    for kind in ("manifests", "blobs"):
        for byte in range(256):
            (folder / kind / f"{byte:02x}").mkdir(parents=True)
    population = _Population(random.Random(seed))
    journal = Journal(folder / "journal.log", NOW_MS)
    waiting: list[Line] = []
    for number in range(count):
        manifest, blobs, author = population.one()
        signed = sign(manifest, author)
        _write(folder / "manifests", signed.digest, signed.envelope)
        for blob in blobs:
            _write(folder / "blobs", hashlib.sha256(blob).digest(), blob)
        population.remember(signed.digest, manifest)
        verdict = population.verdict(signed.id, manifest)
        waiting.append(Line(seq=number + 1, at=NOW_MS, act="adapter.admit", changes=(("verdict", signed.id, verdict),)))
        if len(waiting) == JOURNAL_BATCH or number == count - 1:
            journal.append(waiting)
            waiting = []
    journal.close()


def _write(root: Path, digest: bytes, data: bytes) -> None:
    name = digest.hex()
    path = root / name[:2] / name
    if not path.exists():
        path.write_bytes(data)


def _author(number: int) -> Identity:
    return Identity.from_seed(hashlib.sha256(b"many %d" % number).digest())


def _zipf(rng: random.Random, count: int) -> int:
    """From 0 to `count` - 1; the first ones are the frequent ones."""
    return bisect(_STEPS[:count], rng.random() * _STEPS[count - 1])


_STEPS = list(accumulate(1 / rank for rank in range(1, max(AUTHORS, VOCABULARY) + 1)))


@dataclass
class _Population:
    """What is drawn from, and what has been made so far."""

    rng: random.Random
    authors: list[Identity] = field(default_factory=lambda: [_author(number) for number in range(AUTHORS)])
    earlier: dict[bytes, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    latest: dict[tuple[bytes, str], bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.words = sorted({"".join(self.rng.choices(SYLLABLES, k=3)) for _ in range(3 * VOCABULARY)})[:VOCABULARY]
        self.rng.shuffle(self.words)

    def one(self) -> tuple[Manifest, Sequence[bytes], Identity]:
        """A manifest, its blobs, and who signs it."""
        rng = self.rng
        author = self.authors[_zipf(rng, AUTHORS)]
        base = _zipf(rng, BASES)
        fingerprint = base_fingerprint(base)
        name = f"{self._word()}-{self._word()}"
        rank = rng.choice((4, 8, 16, 32, 64))
        modules = rng.choice(MODULES)
        config = b'{"peft_type":"LORA","r":%d,"modules":%d}' % (rank, len(modules))
        weights = rng.randbytes(32)
        size = int(math.exp(rng.uniform(13, 18)))
        earlier = self.earlier[fingerprint]
        averaged = len(earlier) > 8 and rng.random() < 0.25
        manifest = Manifest(
            name=name,
            description=" ".join(self._word() for _ in range(rng.randrange(8, 40))),
            licence=rng.choice(LICENCES),
            tags=tuple(sorted({self._word() for _ in range(rng.randrange(4))})),
            created_ms=NOW_MS - rng.randrange(YEARS_MS),
            author=author.public_key,
            base=BaseRef(fingerprint=fingerprint, hint=f"base-{base}-{base % 7}b", architecture="LlamaForCausalLM"),
            adapter=AdapterInfo(
                format="peft-lora",
                rank=rank,
                alpha_milli=2_000 * rank,
                rslora=False,
                target_modules=modules,
                dtype=rng.choice(("BF16", "F32")),
                parameters=size,
                capabilities=("averageable", "servable_as_lora") if rng.random() < 0.9 else ("servable_as_lora",),
            ),
            files=(_entry("adapter_config.json", config), _entry("adapter_model.safetensors", weights)),
            training=None if averaged else self._training(earlier),
            evaluation=self._evaluation(),
            leak=None,
            lineage=self._lineage(earlier) if averaged else None,
            round=None,
            routing=None,
            supersedes=self.latest.get((author.public_key, name)),
            extra={},
        )
        return manifest, (config, weights), author

    def remember(self, digest: bytes, manifest: Manifest) -> None:
        self.earlier[manifest.base.fingerprint].append(digest)
        self.latest[manifest.author, manifest.name] = digest

    def verdict(self, id: str, manifest: Manifest) -> Verdict:
        """One in ten waits in quarantine."""
        reasons = ("the norm of a module is far from what is usual",) if self.rng.random() < 0.1 else ()
        origin = "fetched" if manifest.author != self.authors[0].public_key else "trained"
        return Verdict(adapter=id, reasons=reasons, origin=origin, received=manifest.created_ms + 60_000)

    def _word(self) -> str:
        return self.words[_zipf(self.rng, VOCABULARY)]

    def _training(self, earlier: Sequence[bytes]) -> Training:
        rng = self.rng
        return Training(
            method="sft",
            initial=rng.choice(earlier) if earlier and rng.random() < 0.1 else None,
            relative_to=None,
            examples=rng.randrange(100, 50_000),
            tokens=rng.randrange(10_000, 10_000_000),
            steps=rng.randrange(100, 5_000),
            seed=rng.randrange(1_000),
            software="orchd 0.1.0",
            data_commitment=rng.randbytes(32),
        )

    def _lineage(self, earlier: Sequence[bytes]) -> Lineage:
        rng = self.rng
        leaves = sorted(set(rng.choices(earlier, k=rng.randrange(2, 9))))
        return Lineage(
            recipe=rng.randbytes(32),
            method="svd",
            rank=16,
            strength_ppm=1_000_000,
            leaves=tuple(Leaf(id=leaf, weight_ppm=1_000_000 // len(leaves)) for leaf in leaves),
            previous=None,
            outer=None,
            residual_ppm=rng.randrange(100_000),
            tolerance_ppm=1_000,
        )

    def _evaluation(self) -> tuple[Metric, ...]:
        rng = self.rng
        found = []
        if rng.random() < 0.8:
            found.append(
                Metric(metric="loss", value=rng.randrange(4_000_000), base_value=4_500_000, examples=200, split="test")
            )
        if rng.random() < 0.6:
            found.append(
                Metric(
                    metric="exact_match", value=rng.randrange(1_000_001), base_value=None, examples=200, split="test"
                )
            )
        return tuple(found)


def base_fingerprint(number: int) -> bytes:
    return hashlib.sha256(b"base %d" % number).digest()


def base_id(number: int) -> str:
    return text_id(BASE, base_fingerprint(number))


def _entry(path: str, data: bytes) -> FileEntry:
    digest = hashlib.sha256(data).digest()
    return FileEntry(path=path, size=len(data), sha256=digest, chunk_size=65_536, chunks=(digest,))
