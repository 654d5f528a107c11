"""`orchctl chat`: ask a deployment once, or talk with it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from orchd.cli.command import Command, Params, arg, opt, switch
from orchd.cli.context import Context
from orchd.errors import GOES_ON_AFTER, OrchdError, PromptRefused, UsageInvalid

PROMPT = "> "
ROUTED = "orchd/auto"
LEAVE = frozenset({"/quit", "/exit", "/q"})
FRESH = "/new"
HELP = (
    "An empty line does nothing, /new starts afresh, /quit or Ctrl-D leaves, Ctrl-C breaks an answer off and leaves\n"
    "where no answer is being written."
)
EMPTY = "(an empty answer)"
TOO_LONG = "What you said last is left out, and the conversation goes on; /new begins a new one, with all its room."
SAME_AGAIN = "What you said last is left out, and the conversation goes on: say it again, or something shorter."
Message = dict[str, str]


def chat(context: Context, options: argparse.Namespace, params: Params) -> None:
    words = params.pop("text", [])
    if (two := params.pop("ab", None)) is not None:
        _blind(context, two, params, " ".join(words))
        return
    if params.pop("route", False):
        words = [params["deployment"], *words] if "deployment" in params else words
        params["deployment"] = ROUTED
    elif "deployment" not in params:
        hint = "`orchctl deployment list` shows them; with --route one is chosen."
        raise UsageInvalid("a deployment is missing", hint=hint)
    text = " ".join(words)
    if not context.json and params["deployment"] != ROUTED:
        _warn(context, context.call("deployment.show", deployment=params["deployment"]))
    before = [{"role": "system", "content": params.pop("system")}] if "system" in params else []
    if text:
        _once(context, params, [*before, {"role": "user", "content": text}])
    elif sys.stdin.isatty() and not context.json:
        _talk(context, params, before)
    else:
        for line in sys.stdin:
            if line.strip():
                _once(context, params, [*before, {"role": "user", "content": line.strip()}])


def _blind(context: Context, two: list[str], params: Params, text: str) -> None:
    from orchd.cli.nouns.chat_ab import PICKS, compare

    if "deployment" in params or text:
        raise UsageInvalid("--ab names both deployments; what to ask comes later", hint="orchctl chat --ab X Y")
    before = [{"role": "system", "content": params.pop("system")}] if "system" in params else []
    picks = params.pop("picks", PICKS)
    compare(context, two[0], two[1], picks, {"before": before, "given": params})


def _warn(context: Context, deployment: dict[str, Any]) -> None:
    """Who answers may not be who is thought to answer."""
    if deployment["note"]:
        context.note(f"({deployment['note']})")


def _once(context: Context, params: Params, messages: list[Message]) -> None:
    if context.json:
        context.show(context.client.stream("chat.complete", _ignore, messages=messages, **params))
    else:
        _answer(context, params, messages)


def _talk(context: Context, params: Params, before: list[Message]) -> None:
    """A conversation: what was said goes along with every question."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() edits its line when this is loaded
    context.note(HELP)
    messages = list(before)
    while True:
        try:
            said = input(PROMPT).strip()
        except EOFError:
            print(file=context.out)
            return
        if said in LEAVE:
            return
        if said == FRESH:
            messages = list(before)
        elif said.startswith("/"):
            context.note(HELP)
        elif said:
            asked: list[Message] = [*messages, {"role": "user", "content": said}]
            try:
                answer = _answer(context, params, asked)
            except KeyboardInterrupt:
                context.close()  # the daemon stops answering when nobody listens
                print(" ...", file=context.out)
                continue
            except OrchdError as error:
                if error.code not in GOES_ON_AFTER:
                    raise
                print(file=context.out, flush=True)
                context.show_error(error)
                context.note(TOO_LONG if error.code == PromptRefused.code and messages != before else SAME_AGAIN)
                continue
            messages = [*asked, {"role": "assistant", "content": answer}]


def _answer(context: Context, params: Params, messages: list[Message]) -> str:
    """Print the answer while it comes."""
    written: list[str] = []

    def told(method: str, delta: dict[str, Any]) -> None:
        if method == "chat.delta":
            written.append(delta["text"])
            print(delta["text"], end="", file=context.out, flush=True)

    result = context.client.stream("chat.complete", told, messages=messages, stream=True, **params)
    empty = "" if result["text"] or written else EMPTY
    print(result["text"].removeprefix("".join(written)) or empty, file=context.out, flush=True)
    if result["route"]:
        context.note(f"({result['deployment']}: {result['route']})")
    return str(result["text"])


def _ignore(method: str, params: dict[str, Any]) -> None:
    """Deltas that nobody asked for."""


COMMANDS = (
    Command(
        "complete",
        "Ask a deployment; without TEXT, talk with it",
        method="chat.complete",
        run=chat,
        more=f"Without TEXT, lines from a pipe are asked one by one. In a conversation: {HELP}",
        arguments=(
            arg("deployment", "its name; left out with --route", nargs="?"),
            arg("text", "what to say; several words are put together", nargs="*"),
            opt("--ab", "ask both, blindly, and pick the better answer each time", nargs=2, metavar=("X", "Y")),
            opt("--picks", "with --ab: how many before the result is shown (10)", type=int, metavar="N"),
            switch("--route", "choose the right adapter for each request (`orchctl route explain` says why)"),
            opt("--system", "what the model is told first"),
            opt("--max-tokens", "the longest answer (64)", type=int, metavar="N"),
            opt("--temperature", "0 (the default) always takes the likeliest", type=float, metavar="X"),
        ),
    ),
)
