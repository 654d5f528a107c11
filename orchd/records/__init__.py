"""The signed records that nodes tell each other. Sans-I/O: bytes in, values out; the clock is an argument."""

from orchd.records.announcement import Announcement
from orchd.records.attestation import Attestation
from orchd.records.envelope import Record, Verified, cosign, sign, verify, verify_any
from orchd.records.federation import Federation
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
from orchd.records.revocation import Revocation
from orchd.records.rotation import KeyRotation

__all__ = [
    "MICRO",
    "AdapterInfo",
    "Announcement",
    "Attestation",
    "BaseRef",
    "Federation",
    "FileEntry",
    "KeyRotation",
    "Leaf",
    "Lineage",
    "Manifest",
    "Metric",
    "Record",
    "Revocation",
    "Training",
    "Verified",
    "chunk_size_for",
    "cosign",
    "parse_id",
    "sign",
    "text_id",
    "verify",
    "verify_any",
]
