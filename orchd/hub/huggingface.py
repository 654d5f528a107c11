"""The Hugging Face hub: which files a repository has, and those of a base fetched, each against its digest.

Plain httpx: huggingface_hub checks sizes and no digests, and its threads can't be cancelled. A file goes on where an
earlier try stopped. Source: https://huggingface.co/docs/hub/api, huggingface_hub `utils/_http.py` (X-Error-Code).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from orchd.errors import DigestMismatch, HubGated, HubRefused, HubUnreachable, NotAvailable, ParamsInvalid
from orchd.hub.digests import git_sha1_of, sha256_of
from orchd.hub.offer import GGUF, WEIGHTS
from orchd.paths import sync

if TYPE_CHECKING:
    import httpx

ENDPOINT = "https://huggingface.co"
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
TRIES = 5
"""Times in a row that a download may break off without a byte; one that moves goes on for ever."""

PARTIAL = ".partial"
TOKEN_LIMIT = 4096

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_.-]{1,96}")
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}")
WORDS = frozenset(
    {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    | {"vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja"}
)
"""What is taken beside the weights."""

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")

Progress = Callable[[int, int], None]


class _Lfs(msgspec.Struct, frozen=True):
    sha256: str


class _Sibling(msgspec.Struct, frozen=True):
    rfilename: str
    size: int = 0
    blob_id: str = msgspec.field(default="", name="blobId")
    lfs: _Lfs | None = None


class _Safetensors(msgspec.Struct, frozen=True):
    total: int = 0


class _Card(msgspec.Struct, frozen=True):
    license: Any = None


class _Info(msgspec.Struct, frozen=True):
    sha: str
    siblings: tuple[_Sibling, ...] = ()
    gated: Any = False
    card: _Card | None = msgspec.field(default=None, name="cardData")
    safetensors: _Safetensors | None = None


class File(msgspec.Struct, frozen=True, kw_only=True):
    """`size` in bytes; `sha256` of a large file, `git_sha1` of a small one (both hexadecimal)."""

    path: str
    size: int
    sha256: str = ""
    git_sha1: str = ""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """One commit of a repository, with the files that are taken of it. `parameters` 0: not told."""

    id: str
    commit: str
    licence: str
    gated: bool
    parameters: int
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def token(file: Path | None, environ: Mapping[str, str] | None = None) -> str:
    """The user's token: from `file`, the environment, or where `hf auth login` puts it; empty where there is none."""
    env = os.environ if environ is None else environ
    if file is None and env.get("HF_TOKEN"):
        return env["HF_TOKEN"].strip()
    home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    place = file or Path(env.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    try:
        with place.open(encoding="ascii") as opened:
            return opened.read(TOKEN_LIMIT).strip()
    except (OSError, UnicodeDecodeError) as error:
        if file is None:
            return ""
        raise ParamsInvalid(f"the token can't be read from {file}: {error}", field="token_file") from None


class Hub:
    """The hub at `endpoint` (empty: HF_ENDPOINT, else huggingface.co). The token goes to that host alone."""

    def __init__(self, endpoint: str = "", token: str = "") -> None:
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
        self._token = token

    async def repository(self, name: str, revision: str = "main", file: str = "") -> Repository:
        """What there is to take: the base in safetensors, or the one GGUF `file`. Raises `HubRefused`."""
        if not REPOSITORY.fullmatch(name):
            raise ParamsInvalid(f"{name[:120]!r} can be no repository: ORG/NAME", field="path")
        async with self._client() as client, self._errors("told about the repository"):
            answer = await client.get(f"/api/models/{name}/revision/{_escaped(revision)}", params={"blobs": "true"})
        self._check(answer, name)
        try:
            info = msgspec.json.decode(answer.content, type=_Info)
        except msgspec.DecodeError as error:
            raise HubRefused(f"{self.endpoint} did not answer as a hub does: {error}", field="path") from None
        return Repository(
            id=name,
            commit=info.sha,
            licence=_licence(info.card),
            gated=bool(info.gated),
            parameters=info.safetensors.total if info.safetensors else 0,
            files=tuple(_file(one) for one in _chosen(info.siblings, name, file)),
        )

    async def fetch(self, repository: Repository, file: File, target: Path, progress: Progress) -> None:
        """Have the file at `target`, whole and checked. Raises `HubUnreachable`, `HubRefused`, `DigestMismatch`."""
        if await trio.to_thread.run_sync(_is_good, file, target):
            progress(file.size, file.size)
            return
        partial = target.with_name(f"{target.name}.{(file.sha256 or file.git_sha1)[:12]}{PARTIAL}")
        idle, broke = 0, HubUnreachable(f"{self.endpoint} sends nothing of {file.name}")
        while (have := _size(partial)) < file.size or not partial.exists():
            try:
                await self._more(repository, file, partial, have, progress)
            except HubUnreachable as error:
                broke = error
            idle = 0 if _size(partial) > have or not file.size else idle + 1
            if idle == TRIES:
                raise broke
        await trio.to_thread.run_sync(_accept, file, partial, target)

    async def _more(self, repository: Repository, file: File, partial: Path, have: int, progress: Progress) -> None:
        """Add what comes to the file; it may be all of it, the rest, or less."""
        url = f"/{repository.id}/resolve/{repository.commit}/{_escaped(file.path)}"
        headers = {"Range": f"bytes={have}-"} if have else {}
        headers["Accept-Encoding"] = "identity"  # else a place in the file would be one in its compressed form
        async with (
            self._client() as client,
            self._errors(f"sending {file.name}"),
            client.stream("GET", url, headers=headers) as answer,
        ):
            self._check(answer, repository.id)
            goes_on = answer.status_code == 206 and answer.headers.get("content-range", "").startswith(f"bytes {have}-")
            async with await trio.open_file(partial, "ab" if goes_on else "wb") as out:
                done = have if goes_on else 0
                async for chunk in answer.aiter_raw():
                    done += len(chunk)
                    if done > file.size:
                        await out.truncate(0)
                        raise DigestMismatch(f"{file.name} is longer than the {file.size} bytes that were announced")
                    await out.write(chunk)
                    progress(done, file.size)

    def _check(self, answer: httpx.Response, name: str) -> None:
        if answer.status_code in (200, 206):
            return
        told = answer.headers.get("x-error-code", "")
        page = f"{self.endpoint}/{name}"
        if told == "GatedRepo":
            hint = (
                f"Open {page}, signed in, and accept the terms; then give a token of that account: `--token-file FILE`."
            )
            state = "this token's account has not accepted its terms" if self._token else "it asks for a token"
            raise HubGated(f"{name} is gated: {state}", hint=hint, field="path")
        said = {
            "RepoNotFound": f"there is no {name} at {self.endpoint}, or it is private",
            "RevisionNotFound": f"{name} has no such revision",
            "EntryNotFound": f"{name} has no such file",
        }.get(told)
        if said is None and answer.status_code == 401:
            said = f"{self.endpoint} does not take the token" if self._token else f"{name} asks for a token"
        detail = said or f"{self.endpoint} answered {answer.status_code} {answer.reason_phrase} for {name}"
        later = (
            f"It asked to come back in {answer.headers['retry-after']} s." if "retry-after" in answer.headers else None
        )
        raise HubRefused(detail, hint=later, field="path")

    def _client(self) -> httpx.AsyncClient:
        module = _httpx()
        headers = {"User-Agent": "orchd"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"  # httpx leaves it out when a redirect goes elsewhere
        client: httpx.AsyncClient = module.AsyncClient(
            base_url=self.endpoint,
            headers=headers,
            timeout=module.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=True,
        )
        return client

    @asynccontextmanager
    async def _errors(self, doing: str) -> AsyncIterator[None]:
        httpx = _httpx()
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise HubUnreachable(f"{self.endpoint} broke off while {doing}: {reason}") from error


def _chosen(siblings: tuple[_Sibling, ...], name: str, file: str) -> list[_Sibling]:
    """The files of a base, in the order to fetch them: words first, so that a wrong one is known early."""
    if file:
        found = [one for one in siblings if one.rfilename == file]
        if not found or not file.endswith(GGUF):
            names = ", ".join(one.rfilename for one in siblings if one.rfilename.endswith(GGUF))
            raise HubRefused(f"{name} has no GGUF file {file[:120]!r}", hint=f"It has {names or 'none'}.", field="path")
        return found
    plain = {one.rfilename: one for one in siblings if FILE.fullmatch(one.rfilename)}
    shards = [WHOLE] if WHOLE in plain else []
    if not shards and INDEX in plain:
        shards = [INDEX, *sorted(one for one in plain if SHARD.fullmatch(one))]
    if not shards:
        hint = "Its weights can run code, or are of another kind."
        if ggufs := sorted(one.rfilename for one in siblings if one.rfilename.endswith(GGUF)):
            hint = f"It has GGUF files: `orchctl base add {name}/{ggufs[0]}` takes one of {len(ggufs)}."
        raise HubRefused(f"{name} holds no {WHOLE}", hint=hint, field="path")
    return [plain[one] for one in (*sorted(WORDS & plain.keys()), *shards)]


def _file(one: _Sibling) -> File:
    return File(
        path=one.rfilename,
        size=one.size,
        sha256=one.lfs.sha256 if one.lfs else "",
        git_sha1="" if one.lfs else one.blob_id,
    )


def _accept(file: File, partial: Path, target: Path) -> None:
    """The file gets its name once its bytes are the announced ones; else it is thrown away. For a thread."""
    if not _is_good(file, partial):
        partial.unlink()
        hint = "What came was thrown away. Run the same command again; if it stays so, the hub or a proxy alters it."
        raise DigestMismatch(f"{file.name} is not what the hub announced", hint=hint)
    sync(partial)
    os.replace(partial, target)
    sync(target.parent)


def _is_good(file: File, path: Path) -> bool:
    """Whether these are the announced bytes. Where none are announced, none are good."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return sha256_of(path) == file.sha256 if file.sha256 else git_sha1_of(path) == file.git_sha1


def _licence(card: _Card | None) -> str:
    told = card.license if card else None
    return ", ".join(map(str, told)) if isinstance(told, list) else str(told or "unknown")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _escaped(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="/" if text.endswith((WEIGHTS, GGUF)) else "")


def _httpx() -> Any:
    try:
        import httpx
    except ModuleNotFoundError:
        raise NotAvailable("downloading needs the Python package httpx", hint="pip install 'orchd[serve]'") from None
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every address, with the signatures in it
    return httpx
