"""What is put into targets in their tests: a proven GGUF with its golden answers."""

from __future__ import annotations

from orchd.serve.specs import Golden
from orchd.serve.targets import Artefact

Deployable = tuple[Artefact, tuple[Golden, ...]]
