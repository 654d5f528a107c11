"""A chat template as a Go template, found by rendering rather than by translating.

Ollama runs Go templates and knows only the popular Jinja ones. Most chat templates write every message as
`before(role) + content + after(role)`, and something before the answer. These pieces are read off a rendered
conversation; then longer conversations are rendered both ways, and only if all agree is the result used.
"""

from __future__ import annotations

from collections.abc import Callable

from orchd.importers.conversation import Message, Role

Render = Callable[[list[Message], bool], str]
"""Messages and whether the answer's beginning is added → text."""

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
MARK = "\u2400content\u2400"  # a text that no template holds


def go_template(render: Render) -> str:
    """The Go template, or "" when the template isn't of that kind."""
    try:
        pieces = {role: _pieces(render, role) for role in ROLES}
        start = _start(render)
        honest = all(_same(render, pieces, start, count) for count in (1, 2, 3, 4, 5))
    except Exception:  # a template may raise whatever it likes at conversations that it doesn't want
        return ""
    return _written(pieces, start) if honest else ""


def _conversation(count: int) -> list[Message]:
    """system, user, assistant, user, assistant, … as many as `count`; from 3 on the system message is left out."""
    roles: tuple[Role, ...] = ("system", "user", "assistant", "user", "assistant", "user")
    skip = 1 if count > 2 else 0
    return [Message(role, f"text {i}\n of {role}") for i, role in enumerate(roles[skip : skip + count])]


def _pieces(render: Render, role: Role) -> tuple[str, str]:
    """What stands before and after a message of `role`, found where it follows an honest beginning."""
    before = [Message("user", "a")] if role == "assistant" else []
    after = [Message("user", "b")] if role == "system" else []
    text = render([*before, Message(role, MARK), *after], False)
    opening = render(before, False) if before else ""
    closing = render(after, False) if after else ""
    if not text.startswith(opening) or not text.endswith(closing):
        raise ValueError("messages change their neighbours")
    head, mark, tail = text[len(opening) : len(text) - len(closing)].partition(MARK)
    if not mark:
        raise ValueError("the content is changed")
    return head, tail


def _start(render: Render) -> str:
    conversation = [Message("user", "a")]
    plain, asked = render(conversation, False), render(conversation, True)
    if not asked.startswith(plain):
        raise ValueError("the answer's beginning changes what stands before it")
    return asked[len(plain) :]


def _same(render: Render, pieces: dict[Role, tuple[str, str]], start: str, count: int) -> bool:
    conversation = _conversation(count)
    own = "".join(pieces[m.role][0] + m.content + pieces[m.role][1] for m in conversation) + start
    return own == render(conversation, True)


def _written(pieces: dict[Role, tuple[str, str]], start: str) -> str:
    branches = "{{ "
    for role in ROLES:
        before, after = pieces[role]
        branches += f'if eq .Role "{role}" }}}}{_quoted(before)}{{{{ .Content }}}}{_quoted(after)}{{{{ else '
    branches = branches.removesuffix("else ") + "end }}"
    return "{{ range .Messages }}" + branches + "{{ end }}" + _quoted(start)


def _quoted(text: str) -> str:
    """Literal text; braces that would begin an action are written as a string."""
    return text.replace("{{", '{{ "{{" }}')
