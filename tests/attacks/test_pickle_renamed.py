"""A pickle that runs a command when it is opened, with the name of a weights file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchd.errors import TensorsRefused
from orchd.registry.admission import WEIGHTS
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import HONEST_INFO, Lab


class Command:
    """`pickle.load` of this makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._path),)


def test_it_is_never_opened(lab: Lab) -> None:
    folder, trace = lab.folder(), lab.root / "ran"
    bomb: Any = pickle.dumps(Command(trace))
    pickle.loads(bomb)
    assert trace.is_dir()  # it works
    trace.rmdir()
    (folder / WEIGHTS).write_bytes(bomb)
    assert "header" in assert_refused(lab, TensorsRefused, signed_by_alice(lab.claim(folder, HONEST_INFO)), folder)
    assert not trace.exists()
