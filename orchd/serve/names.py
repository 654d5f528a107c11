"""Names of deployments where a colon means something else: in a file's name, and in llama-server, which takes what
follows one for a quantisation (`tiny:latest-my-assistant` became `tiny:ASSISTANT` there)."""

from __future__ import annotations


def plain(name: str) -> str:
    """`gemma:latest-us` → `gemma.latest-us`. Two names that become one are one name there: `DeployTarget.full_name`
    says so, and the second is refused."""
    return name.replace(":", ".")
