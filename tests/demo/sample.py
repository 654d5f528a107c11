"""Results as a good run gives them, in values: for the tests of what is computed from them and drawn of them."""

from __future__ import annotations

from orchd.demo.results import (
    Answer,
    Average,
    Contribution,
    Departure,
    Deployment,
    Entrant,
    Knowledge,
    Refusal,
    Results,
    Revocation,
    Round,
    Score,
    Took,
    Verification,
)


def score(loss: float, exact_match: float, examples: int = 200) -> Score:
    return Score(loss=loss, exact_match=exact_match, examples=examples)


def contribution(node: str, number: int) -> Contribution:
    return Contribution(
        node=node,
        id=f"adp_{node.lower() * 52}",
        author=f"key_{node.lower() * 52}",
        size=251_544,
        base=score(8.5, 0.0, 30),
        own=score(0.4 / number**3, 1.0, 30),
        other=score(7.0 - number, 0.0, 30),
        exam=score(3.5, 0.0),
    )


def played_round(number: int, loss: float, exact_match: float) -> Round:
    verifications = tuple(
        Verification(by=by, relative_error=3e-8, tolerance=1e-3, holds=True, recipe_matches=True) for by in "AB"
    )
    average = Average(
        ids=("adp_x", "adp_y"),
        recipes=("ab12", "ab12"),
        verifications=verifications,
        own=(score(loss, exact_match, 30), score(loss, exact_match, 30)),
        exam=score(loss, exact_match),
    )
    contributions = (contribution("A", number), contribution("B", number))
    return Round(number=number, contributions=contributions, average=average, seconds=12.0)


def entrant(key: str, label: str, loss: float, exact_match: float) -> Entrant:
    return Entrant(key=key, label=label, steps=0 if key == "base" else 300, exam=score(loss, exact_match))


def good_results() -> Results:
    return Results(
        seconds=100.0,
        nodes=5,
        steps=300,
        seed=0,
        knowledge=(
            Knowledge(node="A", source="conversations.json", kind="chatgpt", train=240, heldout=60,
                      words=("cat", "sun"), example=("sun cat", "zavo zulat")),
            Knowledge(node="B", source="half-b.jsonl", kind="jsonl", train=240, heldout=60,
                      words=("bear", "sea"), example=("sea bear", "dizo pelmi")),
        ),
        rounds=(played_round(1, 2.8, 0.005), played_round(2, 0.6, 0.64), played_round(3, 0.07, 0.97)),
        exam=(
            entrant("base", "the base, as shipped", 8.5, 0.0),
            entrant("a-alone", "A alone", 4.1, 0.0),
            entrant("b-alone", "B alone", 3.8, 0.005),
            entrant("oneshot", "A alone and B alone, merged once", 1.9, 0.03),
            entrant("average", "the average after 3 rounds", 0.07, 0.97),
            entrant("pooled", "both halves on one machine (upper bound)", 0.002, 1.0),
        ),
        refused=(
            Refusal(reason="chunk 2 is not what was signed", code=2112, name="DigestMismatch", bytes_changed=64,
                    then_admitted=True),
        ),
        departure=Departure(
            bytes=2_500_000, streams=140, by_protocol=(("orchd_bytes", 2_100_000), ("kad", 300_000)), records=38,
            connects=20, beyond_loopback=(), sentences_searched=600, sentences_found=0,
        ),
        deployment=Deployment(
            target="embedded", size=3_100_000, parity=True, parity_detail="16 of 16 answers equal",
            answers=(Answer(prompt="sun bear", expected="zavo pelmi", a="zavo zulat", b="dizo pelmi",
                            average="zavo pelmi"),),
        ),
        revoked=Revocation(
            id="adp_a", reason="not mine", contained="adp_m",
            affected=(Took(id="adp_a", name="A alone", state="quarantined"),
                      Took(id="adp_m", name="one-shot merge", state="quarantined")),
            rolled_back=("one-shot",), seconds=1.5, question="sun cat", before="zavo zulat", after="x", base="x",
        ),
    )  # fmt: skip
