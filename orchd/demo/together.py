"""Several nodes act at once: a block that ends when everything started in it has ended."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: More things at once than the story ever does.
MOST_THREADS = 8


class Together:
    """`with Together() as nodes: a = nodes.start(f, x)`; after the block `a.result()` is there.

    The first error leaves the block at once. What the others wait for ends when the cast closes, so nothing is joined
    here.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(MOST_THREADS)
        self._futures: list[Future[object]] = []

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future = self._pool.submit(function, *args, **kwargs)
        self._futures.append(future)  # type: ignore[arg-type]
        return future

    def __enter__(self) -> Together:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            done, _ = wait(self._futures, return_when=FIRST_EXCEPTION)
            error = next((failed for future in done if (failed := future.exception())), None)
        self._pool.shutdown(wait=False, cancel_futures=True)
        if kind is None and error is not None:
            raise error
