from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from orchd.errors import TemplateUnusable
from orchd.importers.conversation import Message
from orchd.lm.base import Base
from orchd.lm.chat import Encoded, encode_conversation, encode_prompt, render

TURNS = (
    Message("system", "be kind"),
    Message("user", "copy: sun"),
    Message("assistant", "sun"),
    Message("user", "copy: cat key"),
    Message("assistant", " cat key "),
)


def counted_text(base: Base, encoded: Encoded) -> str:
    kept = [token for token, counts in zip(encoded.ids, encoded.counted, strict=True) if counts]
    return str(base.tokenizer.decode(kept))


def test_the_demo_template_is_chatml_with_a_space_before_the_answer(base: Base) -> None:
    assert render(base.tokenizer, TURNS[:3], add_generation_prompt=True) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\ncopy: sun<|im_end|>\n"
        "<|im_start|>assistant\n sun<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("counted", "want"),
    [
        (None, " sun<|im_end|> cat key<|im_end|>"),
        ((True, True, False, True, True), " cat key<|im_end|>"),
        ((True, True, False, True, False), ""),
    ],
)
def test_only_answers_count_with_their_end(base: Base, counted: Sequence[bool] | None, want: str) -> None:
    encoded = encode_conversation(base.tokenizer, TURNS, counted)
    assert counted_text(base, encoded) == want


def test_a_template_without_tags_gives_the_same(base: Base) -> None:
    with_tags = encode_conversation(base.tokenizer, TURNS)
    template = base.tokenizer.chat_template
    base.tokenizer.chat_template = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    without = encode_conversation(base.tokenizer, TURNS)
    assert without.ids == with_tags.ids
    newline = base.tokenizer.encode("\n")[0]  # what follows an answer counts too: the growth cannot tell
    extra = [i for i in range(len(without.ids)) if without.counted[i] != with_tags.counted[i]]
    assert [without.ids[i] for i in extra] == [newline, newline]


def test_a_template_that_rewrites_what_was_said_is_refused(base: Base) -> None:
    base.tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(TemplateUnusable):
        encode_conversation(base.tokenizer, TURNS)


def test_a_prompt_is_the_beginning_of_the_conversation(base: Base) -> None:
    prompt = encode_prompt(base.tokenizer, TURNS[:4])
    encoded = encode_conversation(base.tokenizer, TURNS)
    assert encoded.ids[: len(prompt)] == tuple(prompt)
    assert encoded.counted[len(prompt)]


def test_the_first_token_can_never_count() -> None:
    with pytest.raises(ValueError, match="first token"):
        Encoded((1, 2), (True, True))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Encoded((1,), (False,)).ids = ()  # type: ignore[misc]
