"""Chat templates that can be said in Go, and those that can't."""

from __future__ import annotations

from orchd.importers.conversation import Message
from orchd.serve.go_template import go_template
from tests.contracts import ollama_server

CONVERSATION = [
    Message("system", "Be short."),
    Message("user", "sun"),
    Message("assistant", "key"),
    Message("user", "{{ .Content }} {braces}"),
]


def plain(messages: list[Message], start: bool) -> str:
    text = "".join(f"<|{m.role}|>\n{m.content}<|end|>\n" for m in messages)
    return text + ("<|assistant|>\n" if start else "")


def test_a_template_of_repeated_messages() -> None:
    template = go_template(plain)
    as_json = [{"role": m.role, "content": m.content} for m in CONVERSATION]
    assert ollama_server.render(template, as_json) == plain(CONVERSATION, True)


def test_braces_in_the_marks() -> None:
    template = go_template(lambda messages, start: plain(messages, start).replace("<|", "{{"))
    assert '{{ "{{" }}user|>' in template


def test_templates_that_are_not_of_that_kind() -> None:
    def numbered(messages: list[Message], start: bool) -> str:
        return "".join(f"{i}{m.content}" for i, m in enumerate(messages)) + "?" * start

    def only_last(messages: list[Message], start: bool) -> str:
        return messages[-1].content if messages else ""

    def default_system(messages: list[Message], start: bool) -> str:
        with_default = messages if messages[0].role == "system" else [Message("system", "default"), *messages]
        return plain(with_default, start)

    def strict(messages: list[Message], start: bool) -> str:
        if messages[0].role == "system":
            raise ValueError("system messages are not supported")
        return plain(messages, start)

    for render in (numbered, only_last, default_system, strict):
        assert go_template(render) == ""
