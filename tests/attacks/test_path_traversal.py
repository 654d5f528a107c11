"""A file list that would write the adapter's weights over the node's key, or anywhere else."""

from __future__ import annotations

import msgspec
import pytest

from orchd.errors import FileListRefused
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import Lab


@pytest.mark.parametrize(
    "path",
    [
        "../identity.pem",
        "../../../../../../etc/cron.d/x",
        "/etc/passwd",
        "adapter_model.safetensors/../../identity.pem",
        "..\\identity.pem",
        "adapter_config.json\u2215x",
        "~/.ssh/authorized_keys",
        "CON",
    ],
)
def test_two_names_and_a_readme_are_all_there_is(lab: Lab, path: str) -> None:
    folder = lab.folder()
    claim = lab.claim(folder)
    for number in range(len(claim.files)):
        entries = list(claim.files)
        entries[number] = msgspec.structs.replace(entries[number], path=path)
        files = {entry.path: folder / claim.files[n].path for n, entry in enumerate(entries)}
        envelope = signed_by_alice(msgspec.structs.replace(claim, files=tuple(entries)))
        assert_refused(lab, FileListRefused, envelope, files)
    extra = msgspec.structs.replace(claim.files[0], path=path)
    files = {entry.path: folder / entry.path for entry in claim.files} | {path: folder / claim.files[0].path}
    envelope = signed_by_alice(msgspec.structs.replace(claim, files=(*claim.files, extra)))
    assert_refused(lab, FileListRefused, envelope, files)
