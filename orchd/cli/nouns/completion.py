"""`orchctl completion`: prints a script; `eval "$(orchctl completion bash)"` in ~/.bashrc turns it on."""

from __future__ import annotations

import argparse

from orchd.cli.command import Command, Params
from orchd.cli.context import Context
from orchd.cli.table import NOUNS

BASH = """\
_orchctl() {
    local word=${COMP_WORDS[COMP_CWORD]} words="--json --quiet --help"
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="%(nouns)s --help --version"
    elif [ "$COMP_CWORD" -eq 2 ]; then
        case ${COMP_WORDS[1]} in
%(cases)s
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _orchctl orchctl
"""

ZSH = """\
#compdef orchctl
_orchctl() {
    if (( CURRENT == 2 )); then
        compadd -- %(nouns)s --help --version
    elif (( CURRENT == 3 )); then
        case ${words[2]} in
%(cases)s
        *) compadd -- --json --quiet --help; _files ;;
        esac
    else
        compadd -- --json --quiet --help
        _files
    fi
}
compdef _orchctl orchctl
"""


def script(shell: str) -> str:
    """The completion script of a shell."""
    template, line = (BASH, "        {}) words='{}' ;;") if shell == "bash" else (ZSH, "        {}) compadd -- {} ;;")
    cases = [line.format(noun, " ".join(verbs)) for noun, (_, verbs) in NOUNS.items() if verbs]
    return template % {"nouns": " ".join(NOUNS), "cases": "\n".join(cases)}


def bash(context: Context, options: argparse.Namespace, params: Params) -> None:
    context.show(script("bash"))


def zsh(context: Context, options: argparse.Namespace, params: Params) -> None:
    context.show(script("zsh"))


COMMANDS = (
    Command("bash", 'For bash: eval "$(orchctl completion bash)"', run=bash),
    Command("zsh", 'For zsh: eval "$(orchctl completion zsh)"', run=zsh),
)
