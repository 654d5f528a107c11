"""The jobs ``dataset.import``, ``dataset.validate`` and ``dataset.prepare``. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Final

from orchd.errors import SourceChanged
from orchd.importers.conversation import Conversation, Example
from orchd.importers.pick import texts_of
from orchd.importers.read import read_examples
from orchd.importers.source import ImportLog
from orchd.importers.texts import files_below
from orchd.jobs.context import JobContext
from orchd.train.datasets.build import Care, Parts, build, findings_in, learnable
from orchd.train.datasets.prepare import chosen
from orchd.train.datasets.privacy import KEYS, Finding
from orchd.train.datasets.specs import (
    ImportResult,
    ImportSpec,
    Issue,
    Listed,
    PrepareSpec,
    ValidateResult,
    ValidateSpec,
)
from orchd.train.datasets.store import DatasetInfo, read_info, to_row

MAX_FINDINGS: Final = 200


def run(spec: ImportSpec, job: JobContext) -> ImportResult:
    """Import ``spec.source`` into ``dataset`` in the working folder.

    Raises `ImportUnreadable`, `ImportTooLarge`, `DatasetUnusable`, `SecretsFound`, `SourceChanged`, `JobCancelled`.
    """
    log = ImportLog()
    source = Path(spec.source)
    before = _stamp(source)
    info = build(
        read_examples(source, log, spec.reading, _progress(log, job)),
        log,
        job.workdir / "dataset",
        Parts(spec.split, spec.seed, spec.test_share, spec.validation_share),
        spec.name,
        Care(spec.secrets, spec.keys_only, spec.near_duplicates == "drop"),
        synthetic=spec.synthetic,
        check=_comparing(log, job),
    )
    if _stamp(source) != before:
        raise SourceChanged(f"{source.name} was changed while it was read", field="source")
    return ImportResult(info=info, folder="dataset", warnings=(*log.warnings, *few(info)))


def few(info: DatasetInfo) -> tuple[str, ...]:
    """A warning where the split was left to orchd, and nothing could be put aside."""
    if info.split != "auto" or info.test:
        return ()
    if info.rows == 1:
        why = "one row is too few"
    else:
        why = "all in one group" if info.groups == 1 else f"{info.rows} rows are too few"
    return (f"nothing was put aside to score on: {why}",)


def run_validate(spec: ValidateSpec, job: JobContext) -> ValidateResult:
    """What an import of ``spec.source`` would find. Raises `ImportUnreadable`, `ImportTooLarge`, `JobCancelled`."""
    log = ImportLog()
    found = Counter[str]()
    findings: list[Finding] = []
    listed: list[Listed] = []
    examples = 0
    for one in learnable(read_examples(Path(spec.source), log, spec.reading, _progress(log, job)), log):
        examples += 1
        for finding in findings_in(to_row(one), log, keys_only=spec.keys_only):
            found[finding.kind] += 1
            if len(findings) < MAX_FINDINGS:
                findings.append(finding)
        if len(listed) < spec.list:
            listed.append(_listed(one))
    return ValidateResult(
        valid=not log.skipped and not KEYS & found.keys(),
        format=log.format,
        kind=log.kind,
        records=log.records,
        examples=examples,
        not_picked=log.not_picked,
        errors=log.skipped,
        warnings=log.warned,
        issues=tuple(
            Issue(file=one.file, line=one.line, record=one.record, level=one.level, text=one.text, fix=one.fix)
            for one in log.problems
        ),
        found=dict(found),
        findings=tuple(findings),
        conversations=tuple(listed),
    )


def run_prepare(spec: PrepareSpec, job: JobContext) -> ImportResult:
    """Make the data set that ``spec`` describes, in ``dataset`` in the working folder.

    Raises `DatasetUnusable`, `SecretsFound`, `JobCancelled`.
    """
    folder = Path(spec.dataset)
    before = read_info(folder)
    kind = "chat" if before.kind == "qa" else before.kind
    log = ImportLog(format=before.format, kind=kind, learns=before.learns)
    info = build(
        chosen(spec, folder, log, job.check),
        log,
        job.workdir / "dataset",
        Parts("auto", spec.seed, spec.test_share, spec.validation_share),
        spec.name,
        Care(spec.secrets, spec.keys_only, spec.near_duplicates == "drop"),
        made_from=spec.made_from,
        synthetic=before.synthetic,
        check=_comparing(log, job),
    )
    return ImportResult(info=info, folder="dataset", warnings=tuple(log.warnings))


def _progress(log: ImportLog, job: JobContext) -> Callable[[], None]:
    """Tells how far the reading is."""
    return lambda: job.progress(log.bytes_read, max(log.bytes_total, 1), "bytes", records=log.records)


def _comparing(log: ImportLog, job: JobContext) -> Callable[[], None]:
    """Tells how many rows were compared with the others, after the reading; of a million that takes minutes."""
    seen = count(1)
    return lambda: job.progress(
        min(next(seen), log.records), max(log.records, 1), "rows", phase="comparing", records=log.records
    )


def _stamp(source: Path) -> list[tuple[str, int, int]]:
    """Sizes and times of what is read."""
    files = files_below(source) if source.is_dir() else [source] if source.is_file() else []
    return [(str(file), stat.st_size, stat.st_mtime_ns) for file in files if (stat := file.stat())]


def _listed(one: Example) -> Listed:
    model = one.model if isinstance(one, Conversation) else ""
    return Listed(id=one.id, title=one.title, messages=len(texts_of(one)), updated_ms=one.updated_ms, model=model)
