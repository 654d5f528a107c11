"""A SentencePiece vocabulary is kept by surgery: llama.cpp gives the ids that SentencePiece itself gives."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
import sentencepiece

from orchd.serve import families as known
from orchd.serve.engine import Engine
from orchd.serve.surgery import graft
from orchd.serve.weights import Weights
from tests.serve import families

PHRASES = (
    "The quick brown fox jumps over the lazy dog", "Der schnelle braune Fuchs springt über den faulen Hund",
    "Le renard brun saute par-dessus le chien paresseux, où qu'il soit", "El zorro marrón salta sobre el perro, ¿no?",
    "Быстрая коричневая лиса прыгает через ленивую собаку", "Η γρήγορη αλεπού πηδά πάνω από το σκυλί",
    "素早い茶色の狐がのろまな犬を飛び越える", "敏捷的棕色狐狸跳过了懒狗", "빠른 갈색 여우가 게으른 개를 뛰어넘는다",
    "الثعلب البني السريع يقفز فوق الكلب الكسول", "השועל החום המהיר קופץ מעל הכלב", "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है",
    "Çabuk kahverengi tilki tembel köpeğin üstünden atlar", "Szybki brązowy lis przeskakuje nad leniwym psem",
    "Con cáo nâu nhanh nhẹn nhảy qua con chó lười", "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัข",
    "naïve café — 12 €, 3/4 of it", "  two  spaces   and three", "🙂🦊 emoji 👩‍👩‍👧 and ﬁne ligatures",
    "x = foo_bar(1234, 'a\\tb')",
)  # fmt: skip
TAILS = ("", "?", " 1", " 42nd", "…", " A", "!!", " b.", " ü", "9")
LINES = tuple(f"{phrase}{tail}" for phrase in PHRASES for tail in TAILS)
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    return


def vocabulary() -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*LINES, *PHRASES] * 3),
        model_writer=model,
        vocab_size=800,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=0.98,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write(base: Path, pieces: sentencepiece.SentencePieceProcessor, target: Path) -> None:
    """A Llama base with that vocabulary, as the well-known converter writes it."""
    weights, writer = Weights.of_base(base), gguf.GGUFWriter(target, "llama")
    layers = [known.layer_slots(known.FAMILIES["llama"], at, families.HEADS, families.KEY_HEADS) for at in (0, 1)]
    slots = {slot.source: slot for layer in layers for slot in layer}
    writer.add_context_length(families.CONTEXT)
    writer.add_embedding_length(families.HIDDEN)
    writer.add_block_count(2)
    writer.add_feed_forward_length(families.MLP)
    writer.add_head_count(families.HEADS)
    writer.add_head_count_kv(families.KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("llama")
    size = pieces.vocab_size()
    writer.add_token_list([pieces.id_to_piece(one).encode() for one in range(size)])
    writer.add_token_scores([pieces.get_score(one) for one in range(size)])
    writer.add_token_types([kind(pieces, one) for one in range(size)])
    writer.add_bos_token_id(pieces.bos_id())
    writer.add_eos_token_id(pieces.eos_id())
    writer.add_unk_token_id(pieces.unk_id())
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(True)
    for name in weights:
        slot = slots.get(name)
        values = weights.read(name)
        if slot is not None and slot.permute_heads:
            values = known.permute_rows(values, slot.permute_heads)
        writer.add_tensor(slot.gguf if slot else OUTSIDE[name], values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def kind(pieces: sentencepiece.SentencePieceProcessor, one: int) -> gguf.TokenType:
    if pieces.is_unknown(one):
        return gguf.TokenType.UNKNOWN
    if pieces.is_control(one):
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if pieces.is_byte(one) else gguf.TokenType.NORMAL


def test_ids_are_those_of_sentencepiece(tmp_path: Path) -> None:
    pieces = vocabulary()
    base = families.make_base(tmp_path / "base", "llama", num_hidden_layers=2, vocab_size=pieces.vocab_size())
    adapter = families.make_adapter(tmp_path / "adapter", base)
    write(base, pieces, tmp_path / "plain.gguf")
    graft(tmp_path / "plain.gguf", adapter, tmp_path / "grafted.gguf")
    assert len(set(LINES)) == 200
    engine = Engine(tmp_path / "grafted.gguf", threads=1, keep_socket=True)
    try:
        found = {line: engine._post("/tokenize", {"content": line, "add_special": False})["tokens"] for line in LINES}
    finally:
        engine.close()
    assert found == {line: pieces.encode(line) for line in LINES}
    assert any(pieces.is_byte(one) for line in LINES for one in found[line])  # letters that it does not hold
