"""What a job's process takes from itself before it sees any data: the network, other files, memory, priority.

`access` says which paths a job may use, `confine` puts it all in force and tries it; one file a mechanism. Nothing here
is a promise: what could not be had on this system is in the report, with the reason.
"""

from orchd.jobs.sandbox.access import Readable, Writable
from orchd.jobs.sandbox.report import Mechanism, Sandbox

__all__ = ["Mechanism", "Readable", "Sandbox", "Writable"]
