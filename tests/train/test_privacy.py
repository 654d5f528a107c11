"""What the scan finds, and what it lets be."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest

from orchd.errors import SecretsFound
from orchd.importers.conversation import Conversation, Message
from orchd.importers.source import ImportLog
from orchd.train.datasets.build import Care, Parts, build
from orchd.train.datasets.privacy import Found, masked, redacted, scan
from orchd.train.datasets.store import DatasetInfo

LETTERS = string.ascii_letters + string.digits
RNG = random.Random(7)


def some(count: int, alphabet: str = LETTERS) -> str:
    return "".join(RNG.choice(alphabet) for _ in range(count))


UPPER = string.ascii_uppercase + string.digits
FOUND = {
    "AWS": ("key", "AKIA" + some(16, UPPER)),
    "GitHub": ("key", "ghp_" + some(36)),
    "GitHub, fine": ("key", "github_pat_" + some(22) + "_" + some(59)),
    "GitLab": ("key", "glpat-" + some(20)),
    "OpenAI": ("key", "sk-proj-" + some(40)),
    "Anthropic": ("key", "sk-ant-api03-" + some(80)),
    "Google": ("key", "AIza" + some(35)),
    "Slack": ("key", "xoxb-123456789012-" + some(24)),
    "Stripe": ("key", "sk_live_" + some(24)),
    "Hugging Face": ("key", "hf_" + some(34)),
    "npm": ("key", "npm_" + some(36)),
    "Telegram": ("key", "123456789:AA" + some(33)),
    "JWT": ("key", f"eyJ{some(20)}.eyJ{some(30)}.{some(40)}"),
    "private key": ("key", f"-----BEGIN RSA PRIVATE KEY-----\n{some(64)}\n-----END RSA PRIVATE KEY-----"),
    "mail": ("mail", "maria.silva+x@mail.example.com.br"),
    "card": ("card", "4111 1111 1111 1111"),
    "card, dashes": ("card", "5500-0000-0000-0004"),
    "CPF": ("cpf", "529.982.247-25"),
    "CNPJ": ("cnpj", "11.222.333/0001-81"),
    "IBAN": ("iban", "DE89 3704 0044 0532 0130 00"),
    "phone, BR": ("phone", "(11) 98765-4321"),
    "phone, BR, country": ("phone", "+55 11 98765-4321"),
    "phone, BR, bare": ("phone", "21 98765-4321"),
    "phone, US": ("phone", "(415) 555-2671"),
    "phone, US, dots": ("phone", "415.555.2671"),
    "phone, DE": ("phone", "+49 30 901820"),
    "address, BR": ("address", "Rua das Flores, 123"),
    "address, BR, avenue": ("address", "Av. Paulista, nº 1578"),
    "address, EN": ("address", "221 Baker Street"),
    "IPv4": ("ip", "8.8.4.4"),
}


@pytest.mark.parametrize(("kind", "secret"), FOUND.values(), ids=FOUND.keys())
@pytest.mark.parametrize("around", ["{}", "It is {}, I think.", "veja: {}\nobrigado", "({})"])
def test_what_is_found(kind: str, secret: str, around: str) -> None:
    text = around.format(secret)
    found = scan(text)
    assert [(one.kind, text[one.start : one.end].strip(".")) for one in found] == [(kind, secret)]


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("password: hunter2hunter2", "hunter2hunter2"),
        ("a senha é Tr0ub4dor&3", "Tr0ub4dor&3"),
        ('API_KEY="9f8e7d6c5b4a"', "9f8e7d6c5b4a"),
        ("postgres://admin:s3cr3t@db.internal/x", "s3cr3t"),
        ('{"secret": "a1b2c3d4e5"}', "a1b2c3d4e5"),
    ],
)
def test_passwords_are_known_by_what_stands_before_them(text: str, secret: str) -> None:
    assert [text[one.start : one.end] for one in scan(text) if one.kind == "password"] == [secret]


@pytest.mark.parametrize(
    ("text", "cpf"), [("CPF 52998224725", "52998224725"), ("meu cpf é 529982247-25", "529982247-25")]
)
def test_a_tax_number_without_dots_needs_its_name(text: str, cpf: str) -> None:
    assert [text[one.start : one.end] for one in scan(text)] == [cpf]


@pytest.mark.parametrize(
    "text",
    [
        "The password is wrong and the token expired.",
        'password = "your_password_here1"',
        "set API_KEY=${API_KEY_2}",
        "Kernel 6.18.0-12 and epoch 1732212000 at version 1.2.3.4.5",
        "my router is 192.168.0.1, the example 192.0.2.7, the loopback 127.0.0.1",
        "card number 4111 1111 1111 1112 has a wrong check digit",
        "CPF 111.111.111-11 and 529.982.247-26 are not valid",
        "52998224725 is a number like another",
        "A rua estava molhada às 20 horas; em 2024 choveu 300 mm",
        "sk-learn, sk-image and task-oriented things",
        "pi is 3.14159265358979 and 12345678901234567890",
        "from 2019-03-04 to 2020-05-06, call f(12, 34) or user@localhost",
        "@property\ndef eyJ(self): ...",
        "the St Andrews 40 times, 12 Monkeys, 3 Idiots",
        "ISO 8601, RFC 5737, DE89 3704 0044 0532 0130 01",
        "translate: zavo mirut tolbe",
    ],
)
def test_what_is_let_be(text: str) -> None:
    assert scan(text) == []


def test_a_private_key_that_is_cut_ends_with_the_text() -> None:
    text = f"look: -----BEGIN PRIVATE KEY-----\n{some(64)}\n{some(30)}"
    assert scan(text) == [Found("key", 6, len(text))]


def test_keys_only() -> None:
    text = f"joe@example.org has {FOUND['OpenAI'][1]}"
    assert [one.kind for one in scan(text)] == ["mail", "key"]
    assert [one.kind for one in scan(text, keys_only=True)] == ["key"]


def test_redacting_leaves_the_rest_and_finds_nothing_more() -> None:
    text = f"Mail joe@example.org or call (11) 98765-4321; key {FOUND['GitHub'][1]}."
    clean = redacted(text, scan(text))
    assert clean == "Mail [MAIL] or call [PHONE]; key [KEY]."
    assert scan(clean) == []
    assert redacted("plain", []) == "plain"


def test_what_is_shown_is_too_little_to_use() -> None:
    assert masked("sk-abcdefghijkl") == "sk-a… (15 characters)"
    assert masked("abc") == "a… (3 characters)"
    assert "\n" not in masked("a\nb\nc\nd\ne\nf\ng\nh\n")


def test_nothing_is_found_twice() -> None:
    text = "password: " + FOUND["OpenAI"][1]
    assert len(scan(text)) == 1
    assert scan("a@b.org a@b.org") == [Found("mail", 0, 7), Found("mail", 8, 15)]


@pytest.mark.parametrize(
    "unit",
    ["a.", "a@", "a@b.", "eyJ-eyJ", "eyJaaaaaaaaaa.", "a:/", "a.b://", "x://y:", "password ", "password:", "1 Aa ",
     "R. A-", "Rua A", "1 ", "1-", "+1 (", "AA11 ", "SG.-", "-----BEGIN PRIVATE KEY-----", "cpf", "1.1.", "k_"],
)  # fmt: skip
def test_a_text_that_is_made_to_be_slow_is_read(unit: str) -> None:
    """With one unbounded repetition in a pattern, one of these takes hours."""
    scan(unit * 30_000 + "@ :// - = . k_ eyJ (")


def test_a_key_is_found_again_by_its_conversation_and_redaction_says_its_kinds(tmp_path: Path) -> None:
    """An export of chats is one line: that says nothing."""
    said = Message("user", "mine is sk-proj-AbCdEfGhIjKlMnOpQrStUvWx and ana@example.org"), Message("assistant", "no")
    one = Conversation(id="1234567890abcdef", title="My router", messages=said)

    def made(folder: str, care: Care) -> DatasetInfo:
        log = ImportLog(format="chatgpt")
        log.file, log.line = "conversations.json", 1
        return build([one], log, tmp_path / folder, Parts("train"), "x", care)

    with pytest.raises(SecretsFound, match=r"in 'My router' \(`--id 1234567890abc`\), user"):
        made("asked", Care())
    assert made("redacted", Care("redact")).redacted_kinds == {"key": 1, "mail": 1}
