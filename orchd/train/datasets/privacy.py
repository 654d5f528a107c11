"""Secrets and personal data in texts: keys, passwords, cards, tax numbers, phones, mails, addresses (PT-BR and EN).

Patterns with check digits where there are any. Names of people are not found: that needs a language model.
Every repetition in a pattern is bounded, or takes what it has read: a text made to be slow is not slow.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

KEYS: Final = frozenset({"key", "password"})
"""Kinds that let somebody in: an import stops and asks where one is found."""

SHOWN_CHARACTERS: Final = 4
_NUMBERS: Final = frozenset({"iban", "cnpj", "cpf", "card", "phone", "ip", "address"})
_DIGIT: Final = re.compile(r"\d")


class Found(NamedTuple):
    """``text[start:end]`` is of this kind."""

    kind: str
    start: int
    end: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Where something was found: in the text of which row, from which character. ``who`` says that text: a role, or
    prompt, completion, text, chosen or rejected. ``line`` is that of the record in ``file``. ``shown`` is only the
    beginning of it."""

    kind: str
    row: str
    title: str
    file: str
    line: int
    text: int
    who: str
    start: int
    end: int
    shown: str


class _Rule(NamedTuple):
    """``hint``: characters of which one must be in a text before the pattern is tried. Group ``it``, where the pattern
    has one, is what is meant."""

    kind: str
    hint: tuple[str, ...]
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] = lambda _: True


def scan(text: str, *, keys_only: bool = False) -> list[Found]:
    """What is found, in its order, nothing twice."""
    found: list[Found] = []  # in the order of their starts
    has_digits = _DIGIT.search(text) is not None
    for rule in _RULES:
        if (keys_only and rule.kind not in KEYS) or (rule.kind in _NUMBERS and not has_digits):
            continue
        if rule.hint and not any(hint in text for hint in rule.hint):
            continue
        for match in rule.pattern.finditer(text):
            start, end = match.span("it" if "it" in rule.pattern.groupindex else 0)
            at = bisect_left(found, start, key=lambda one: one.start)
            free = (at == 0 or found[at - 1].end <= start) and (at == len(found) or found[at].start >= end)
            if free and rule.holds(text[start:end]):
                found.insert(at, Found(rule.kind, start, end))
    return found


def redacted(text: str, found: Sequence[Found | Finding]) -> str:
    """The text with the kind in brackets in the place of each: ``[MAIL]``."""
    pieces, at = [], 0
    for one in found:
        pieces += [text[at : one.start], f"[{one.kind.upper()}]"]
        at = one.end
    return "".join([*pieces, text[at:]])


def masked(text: str) -> str:
    """The beginning, and how long it is: enough to find it again, too little to use it."""
    head = text[: min(SHOWN_CHARACTERS, len(text) // 3)]
    return f"{head}… ({len(text)} characters)".replace("\n", " ")


# ---- what holds ----------------------------------------------------------------------------------------------


def _digits(text: str) -> list[int]:
    return [int(character) for character in text if character.isdigit()]


def is_card(text: str) -> bool:
    """13 to 19 digits, not all alike, with a valid check digit (Luhn, ISO/IEC 7812-1)."""
    digits = _digits(text)
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2 or digits[0] not in (2, 3, 4, 5, 6):
        return False
    doubled = [digit * 2 - 9 * (digit > 4) if at % 2 else digit for at, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def is_cpf(text: str) -> bool:
    """11 digits of which the last two check the others (Receita Federal, modulo 11)."""
    digits = _digits(text)
    return len(digits) == 11 and len(set(digits)) > 1 and _checks(digits, (9, 10), lambda at, size: size + 1 - at)


def is_cnpj(text: str) -> bool:
    """14 digits of which the last two check the others (Receita Federal, modulo 11)."""
    digits = _digits(text)
    return len(digits) == 14 and _checks(digits, (12, 13), lambda at, size: (size - 1 - at) % 8 + 2)


def _checks(digits: list[int], places: tuple[int, int], weight: Callable[[int, int], int]) -> bool:
    for size in places:
        rest = sum(digit * weight(at, size) for at, digit in enumerate(digits[:size])) % 11
        if digits[size] != (0 if rest < 2 else 11 - rest):
            return False
    return True


def is_iban(text: str) -> bool:
    """Modulo 97 is 1 (ISO 13616)."""
    plain = text.replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(one, 36)) for one in plain[4:] + plain[:4])) % 97 == 1


def is_phone(text: str) -> bool:
    return 8 <= len(_digits(text)) <= 15 and len(set(_digits(text))) > 2


def is_public_address(text: str) -> bool:
    """An IPv4 address that is not of a private network, of this machine or for examples."""
    first, second, *rest = (int(part) for part in text.split("."))
    private = first in (0, 10, 127) or (first, second) in ((192, 168), (169, 254)) or first > 223
    private |= (first, second, rest[0]) in ((192, 0, 2), (198, 51, 100), (203, 0, 113))  # for examples, RFC 5737
    return max(first, second, *rest) < 256 and not private and not (first == 172 and 16 <= second < 32)


def is_secret(text: str) -> bool:
    """Letters and digits, no word that stands for a secret in examples."""
    lowered = text.lower()
    plain = any(word in lowered for word in ("your", "example", "xxxx", "****", "senha", "password", "changeme", "${"))
    return not plain and any(one.isdigit() for one in text) and any(one.isalpha() for one in text)


# ---- the rules, the surest first -----------------------------------------------------------------------------

_KEY_SHAPES: Final = (
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----[\s\S]*?(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY-----|\Z)",
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    r"\bgh[pousr]_[A-Za-z0-9]{36,}",
    r"\bgithub_pat_[A-Za-z0-9_]{40,}",
    r"\bglpat-[\w-]{20,}",
    r"\bsk-(?:ant-|proj-|svcacct-|or-)?[A-Za-z0-9_-]{20,}",
    r"\bAIza[0-9A-Za-z_-]{35}",
    r"\bGOCSPX-[\w-]{20,}",
    r"\bxox[abeprs]-[0-9A-Za-z-]{10,}",
    r"\b[srp]k_(?:live|test)_[0-9A-Za-z]{16,}",
    r"\bhf_[A-Za-z0-9]{30,}",
    r"\bnpm_[A-Za-z0-9]{36}",
    r"\bpypi-[\w-]{40,}",
    r"\bSG\.[\w-]{16,64}\.[\w-]{30,}",
    r"\b\d{8,10}:AA[\w-]{32,}",
    r"(?<![\w-])eyJ[\w-]{10,2000}\.eyJ[\w-]{10,8000}\.[\w-]{10,}",
    r"\bAGE-SECRET-KEY-1[0-9A-Z]{50,}",
)
_KEY_HINTS: Final = (
    *(
        "AKIA",
        "ASIA",
        "gh",
        "github_pat",
        "glpat",
        "sk-",
        "AIza",
        "GOCSPX",
        "xox",
        "k_",
        "hf_",
        "npm_",
        "pypi-",
        "SG.",
        ":AA",
        "eyJ",
    ),
    "AGE-",
)
_SECRET_WORDS: Final = (
    r"pass(?:word|wd|phrase)|pwd|senha|secret|segredo|api[ _-]?key|access[ _-]?key|secret[ _-]?key|auth[ _-]?token|"
    r"token|chave(?: de acesso| da api)?"
)
_MAIL: Final = r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
_CARD: Final = r"\d{13,19}|(?:\d{4}[ -]){3}\d{4}(?:[ -]\d{1,3})?|\d{4}[ -]\d{6}[ -]\d{5}"
_STREETS_PT: Final = r"Rua|R\.|Avenida|Av\.?|Alameda|Al\.|Travessa|Praça|Rodovia|Estrada|Largo"
_STREETS_EN: Final = r"Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Square|Terrace|Way"

_RULES: Final = (
    _Rule("key", ("-",), re.compile("|".join(_KEY_SHAPES[:1]))),
    _Rule(
        "key",
        _KEY_HINTS,
        re.compile("|".join(_KEY_SHAPES[1:])),
    ),
    _Rule("password", ("://",), re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@]{1,100}:(?P<it>[^\s:/@]{4,200})@\w")),
    _Rule(
        "password",
        (":", "=", " is ", " é "),
        re.compile(
            rf"(?i)(?:\b|_)(?:{_SECRET_WORDS})[\"']?(?:\s*[:=]\s*|\s+(?:is|é)\s+)[\"'`]?(?P<it>[^\s\"'`,;]{{8,200}})"
        ),
        is_secret,
    ),
    _Rule("mail", ("@",), re.compile(_MAIL)),
    _Rule("iban", (), re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), is_iban),
    _Rule("cnpj", (), re.compile(r"\b\d{2}\.\d{3}\.\d{3}/\d{4}-\d{2}\b"), is_cnpj),
    _Rule("cpf", (), re.compile(r"\b\d{3}\.\d{3}\.\d{3}-\d{2}\b"), is_cpf),
    _Rule("cpf", ("cpf", "CPF"), re.compile(r"(?i)\bcpf\W{0,3}(?:n\S{0,2} |é |is )?(?P<it>\d{9}-?\d{2})\b"), is_cpf),
    _Rule("card", (), re.compile(rf"(?<![\w.-])(?<![A-Z]{{2}}\d\d )(?:{_CARD})(?![\w-])"), is_card),
    _Rule("phone", ("+",), re.compile(r"(?<![\w+])\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d(?!\w)"), is_phone),
    _Rule("phone", ("(",), re.compile(r"(?<!\w)\(0?\d{2}\) ?9? ?\d{4}[ .-]?\d{4}(?!\w)"), is_phone),
    _Rule("phone", ("(",), re.compile(r"(?<!\w)\(\d{3}\) ?\d{3}[ .-]\d{4}(?!\w)"), is_phone),
    _Rule("phone", ("-", ".", " "), re.compile(r"(?<![\w.-])\d{2} 9\d{4}[ -]?\d{4}(?![\w-])"), is_phone),
    _Rule("phone", ("-", "."), re.compile(r"(?<![\w.-])[2-9]\d{2}([.-])\d{3}\1\d{4}(?![\w-])"), is_phone),
    _Rule("ip", (".",), re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w.-]*\d)"), is_public_address),
    _Rule(
        "address",
        (),
        re.compile(
            rf"\b(?:{_STREETS_PT}) (?:(?:d[aeo]s?|e) )?[A-ZÀ-Ý][\wÀ-ÿ.'-]{{0,40}}(?: [\wÀ-ÿ.'-]{{1,40}}){{0,5}}?"
            r"(?:, ?| )(?:n[º°o.]* ?|número )?\d{1,5}(?!\d| ?%)"
        ),
    ),
    _Rule("address", (), re.compile(rf"\b\d{{1,5}} (?:[A-Z][a-z]{{1,30}} ){{1,3}}(?:{_STREETS_EN})\b\.?")),
    _Rule("address", ("CEP", "cep"), re.compile(r"(?i)\bcep\W{0,3}(?P<it>\d{5}-?\d{3})\b")),
)  # fmt: skip
