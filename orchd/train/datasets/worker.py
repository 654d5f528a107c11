"""The job ``dataset.import``: a file → a data set folder. No torch."""

from __future__ import annotations

from pathlib import Path

from orchd.importers.read import ImportLog, read_conversations
from orchd.jobs.context import JobContext
from orchd.train.datasets.build import Parts, build
from orchd.train.specs import ImportResult, ImportSpec


def run(spec: ImportSpec, job: JobContext) -> ImportResult:
    """Import ``spec.source`` into ``dataset`` in the working folder.

    Raises `ImportUnreadable`, `ImportTooLarge`, `DatasetUnusable`, `JobCancelled`.
    """
    log = ImportLog()

    def progress() -> None:
        job.progress(log.bytes_read, max(log.bytes_total, 1), "bytes", records=log.records)

    info = build(
        read_conversations(Path(spec.source), log, spec.kind, progress),
        log,
        job.workdir / "dataset",
        Parts(spec.split, spec.seed, spec.test_share, spec.validation_share),
        spec.name,
    )
    return ImportResult(
        id=info.id,
        name=info.name,
        kind=info.kind,
        rows=info.rows,
        train=info.train,
        validation=info.validation,
        test=info.test,
        skipped=info.skipped,
        duplicates=info.duplicates,
        folder="dataset",
        warnings=tuple(log.warnings),
    )
