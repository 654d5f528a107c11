"""What planning a training takes and gives. Imports no torch: the daemon reads it too.

Losses are mean nats per counted token, sizes bytes, times seconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from orchd.importers.turns import Learn
from orchd.train.specs import Finding, Settled, TrainSpec


class PlanSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Plan the training of ``train`` on this machine; nothing is kept. ``command`` begins it."""

    train: TrainSpec
    command: str = ""


class ValidateSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Look at the settings of ``train`` with the data set and the base that they are for (either may be empty).

    ``errors`` were found before; ``given`` are the paths of the settings that were given.
    """

    train: TrainSpec
    errors: tuple[Finding, ...] = ()
    given: tuple[str, ...] = ()


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A data set in a base's tokens. ``examples`` fit the base, ``distinct`` of them differ, ``answers`` different
    answers are learnt. ``too_long`` rows were left out for their length; ``duplicates`` were when it was made.

    ``tokens`` are all, ``counted`` those that count in the loss; the ``longest`` example has so many. ``lengths``
    counts the different numbers of tokens. ``validation`` and ``heldout`` are rows, ``validation_tokens`` those of the
    former. ``learns``: whose turns of conversations.
    """

    examples: int
    distinct: int
    answers: int
    counted: int
    tokens: int
    longest: int
    lengths: int
    too_long: int = 0
    duplicates: int = 0
    validation: int = 0
    validation_tokens: int = 0
    heldout: int = 0
    learns: Learn = "assistant"


class BaseFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A base: the hidden ``width``, the ``inner`` one of the MLP, its number of ``layers``, ``vocabulary`` and
    ``parameters``, its ``context`` in tokens (0: it does not say), and the bytes of one number in memory.
    ``adapter_parameters`` are those of an adapter of rank 1, ``layer_parameters`` those of all layers. Its files have
    ``file_bytes``; ``is_mapped``: what is in them is what is computed with."""

    width: int
    inner: int
    layers: int
    vocabulary: int
    parameters: int
    adapter_parameters: int
    context: int
    itemsize: int = 4
    layer_parameters: int = 0
    file_bytes: int = 0
    is_mapped: bool = False


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What is free where the training will run (None: not known), and what it is. ``outside``: so many layers of the
    base are not held in its memory."""

    device: str
    threads: int
    compute: str
    free_memory: int | None = None
    free_disk: int | None = None
    outside: int = 0

    @property
    def backend(self) -> Literal["torch", "mlx"]:
        return "mlx" if self.device.startswith("mlx") else "torch"


class Alone(msgspec.Struct, frozen=True, kw_only=True):
    """How well the base alone does on some of the examples: ``loss``, and the share of counted tokens that it would
    have chosen."""

    loss: float
    accuracy: float
    examples: int


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What one ``phase`` after the last step takes, and ``why``: ``tokens`` that are scored; ``passes``, each of which
    writes one more token of all answers that are written together, and these ``answers`` summed over the passes; how
    often the base is ``loaded``."""

    phase: str
    why: str
    tokens: int = 0
    passes: int = 0
    answers: int = 0
    loaded: int = 0


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a token that is scored, of a pass that writes one token of one answer, and of each answer in it."""

    token_s: float
    pass_s: float
    answer_s: float

    def seconds(self, work: Work, loading_s: float) -> float:
        written = work.passes * self.pass_s + work.answers * self.answer_s
        return work.tokens * self.token_s + written + work.loaded * loading_s


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A few real steps. ``step_s`` and ``tokens`` are the means of a step; ``pace`` is that of what is not training.
    ``memory`` is the most that the process had, ``loading_s`` what came before the trial, ``trying_s`` what that took
    as the training will do it again (0 where it need not). ``loss_before`` and ``loss_after`` are on the same examples.
    Of the learning ``rates`` that were tried ``rate`` was the best."""

    steps: int
    step_s: float
    tokens: float
    pace: Pace
    loading_s: float
    trying_s: float
    memory: int
    loss_before: float
    loss_after: float
    rate: float
    rates: tuple[float, ...]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One setting or figure of a plan, as a value and as people read it, and why it is so."""

    name: str
    value: float | int | str
    shown: str
    why: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """``lines`` say everything once. ``worth``: the training is worth its time; if not, ``reasons`` say why.

    ``kind`` is what it is: a first training, or one that continues an adapter. ``command`` trains as the plan says.
    """

    kind: Literal["first", "continued"]
    worth: bool
    reasons: tuple[str, ...]
    settled: Settled
    lines: tuple[Line, ...]
    warnings: tuple[Finding, ...]
    seconds: float
    memory: int
    disk: int
    data: DataFacts
    base: BaseFacts
    machine: Machine
    alone: Alone
    trial: Trial
    command: str = ""


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """``valid``: there is no error. ``warnings`` will likely make a worse adapter, ``recommendations`` name a value
    that the plan would choose."""

    valid: bool
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    recommendations: tuple[Finding, ...]
