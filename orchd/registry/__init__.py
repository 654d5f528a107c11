"""What is here: adapters behind the one door, blobs, and the index over them."""

from orchd.registry.bases import Base
from orchd.registry.registry import ADMITTED, QUARANTINED, Admission, Registry
from orchd.registry.rows import AdapterRow, AnnouncementRow, DatasetRow

__all__ = [
    "ADMITTED",
    "QUARANTINED",
    "AdapterRow",
    "Admission",
    "AnnouncementRow",
    "Base",
    "DatasetRow",
    "Registry",
]
