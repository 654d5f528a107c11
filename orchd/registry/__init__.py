"""What is here: adapters behind the one door, blobs, and the index over them."""

from orchd.registry.bases import Base
from orchd.registry.registry import Admission, Registry
from orchd.registry.rows import AdapterRow, AnnouncementRow, DatasetRow
from orchd.registry.standing import ADMITTED, QUARANTINED, REMOVED

__all__ = [
    "ADMITTED",
    "QUARANTINED",
    "REMOVED",
    "AdapterRow",
    "Admission",
    "AnnouncementRow",
    "Base",
    "DatasetRow",
    "Registry",
]
