"""The signed records that nodes tell each other. Sans-I/O: bytes in, values out; the clock is an argument."""

from orchd.records.announcement import Announcement
from orchd.records.envelope import Verified, sign, verify
from orchd.records.ids import parse_id, text_id
from orchd.records.manifest import (
    MICRO,
    AdapterInfo,
    BaseRef,
    FileEntry,
    Leaf,
    Lineage,
    Manifest,
    Metric,
    Training,
    chunk_size_for,
)

__all__ = [
    "MICRO",
    "AdapterInfo",
    "Announcement",
    "BaseRef",
    "FileEntry",
    "Leaf",
    "Lineage",
    "Manifest",
    "Metric",
    "Training",
    "Verified",
    "chunk_size_for",
    "parse_id",
    "sign",
    "text_id",
    "verify",
]
