"""`orchctl deploy`."""

from __future__ import annotations

from orchd.cli.command import Command, arg, opt, switch
from orchd.cli.nouns.deployment import human_row
from orchd.cli.text import word

COMMANDS = (
    Command(
        "start",
        "Make an adapter usable in a serving target, and prove that it answers the same",
        human_row,
        method="deploy.start",
        job=True,
        then=lambda row: (
            f"`orchctl chat {word(row['name'])}` talks with it"
            if row["target"] == "embedded"
            else f"`orchctl deployment show {word(row['name'])}` says where it is asked"
        ),
        more="`orchctl chat NAME` asks it then. Without ADAPTER the plain base is deployed.",
        arguments=(
            arg("adapter", "its name, or its id or the beginning of it", nargs="?"),
            opt("--name", "how to call the deployment", required=True),
            opt("--target", "embedded (the default), ollama, folder, vllm or llama_server"),
            opt("--onto", "a model in Ollama that is its base: its template and texts are taken over"),
            opt("--base", "which base, without an adapter (demo)"),
            opt(
                "--quantize",
                "F32, F16, Q8_0, Q4_K_M, or keep: fold it into the base's own GGUF file (where there is one)",
            ),
            opt("--dataset", "the proof asks prompts from its test part"),
            switch("--force", "deploy although the proof failed, or a quarantined adapter"),
            switch("--replace", "also a model of that name that orchd did not put there"),
        ),
    ),
)
