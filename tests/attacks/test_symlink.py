"""A folder from an archive whose README.md is a link to the private key: describing it would sign and share the key."""

from __future__ import annotations

import pytest

from orchd.errors import FileListRefused
from orchd.registry.admission import CONFIG, README, WEIGHTS
from orchd.registry.describe import file_entries
from tests.helpers import Lab


@pytest.mark.parametrize("name", [README, CONFIG, WEIGHTS])
@pytest.mark.parametrize("target", ["identity.pem", "nowhere"])
def test_a_link_is_not_described(lab: Lab, name: str, target: str) -> None:
    (lab.root / "identity.pem").write_text("-----BEGIN PRIVATE KEY-----")
    folder = lab.folder()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(lab.root / target)
    with pytest.raises(FileListRefused, match="link"):
        file_entries(folder)
