"""What the worker functions of this room take and give. Imports no torch: the daemon reads it too.

Paths are strings. Losses are mean nats per counted token; exact match is a share from 0 to 1.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from orchd.jobs.sandbox import Readable, Writable
from orchd.train.answers import LabelScore
from orchd.train.leak.figures import Centroid, LeakReport

RSLORA_ALPHA: Final = 8.0


class EarlyStopping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stop after ``patience`` validations of which none was better than the best by more than ``min_delta`` nats."""

    enabled: bool = False
    patience: int = 5
    min_delta: float = 0.0


class Checkpointing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint each ``interval`` steps (0: each minute), and the ``keep_best`` best adapters of the run.

    Not ``enabled``: only when it is stopped, and at its end."""

    enabled: bool = True
    interval: int = 0
    keep_best: int = 3


class LeakSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a leak report measures. ``seed`` and ``canaries`` are those of the training; ``routing`` makes the centroid
    of the prompts too. ``validation_split`` and ``max_length`` are the training's: what they left out was not learnt.
    ``epochs`` (0: not known) and ``dropout`` only word the advice. ``replay`` is the share of what was learnt that were
    answers of the base: they count neither as learnt nor as unseen."""

    seed: int = 0
    canaries: int = 0
    validation_split: float = 0.0
    max_length: int = 0
    routing: bool = False
    epochs: float = 0.0
    dropout: float = 0.0
    replay: float = 0.0


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Train one adapter on the ``train`` part of a data set.

    ``initial`` is the PEFT folder to go on from. ``alpha`` None: see `alpha_of`. With ``rslora`` the adapter is scaled
    by alpha/√rank instead of alpha/rank (Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA,
    2023), so that a higher rank learns faster. ``modules`` (names such as ``q_proj``) and ``layers`` (from 0; from the
    end when negative) choose where it learns; empty: everywhere, or where ``initial`` does.

    What is 0 of ``rank``, ``learning_rate``, ``batch_size`` and ``steps`` is chosen by the plan (`plan.py`); ``epochs``
    (0: not said) says instead how often each example is seen, and ``max_steps`` (0: no bound) bounds either.
    ``warmup_steps`` None is a tenth. With one learning-rate schedule over several rounds, ``schedule_total`` is the
    length of all rounds in steps (0: this run's steps) and ``schedule_offset`` the number of steps before this run.

    Examples longer than ``max_length`` tokens (0: what the base takes in) are left out, text is read in stretches.
    ``row_tokens`` are packed into one pass (0: as memory allows). ``validation_split`` of the training rows is put
    aside to validate on, besides those that the data set has for that.

    ``method`` lora trains an adapter; full trains the weights of the base themselves (of the chosen modules and
    layers), which become a new base. ``extract_rank`` above 0 then makes an adapter of that rank from the difference.

    ``backend`` computes the base while an adapter is trained: torch, or mlx; "auto" takes mlx on Apple's processors
    where it is installed. What is left is scored by torch.

    ``objective`` is supervised fine-tuning (sft) or direct preference optimisation (dpo); "auto" takes the latter for
    preferences. ``dpo_beta``: how strongly it is held to the model that it began with;
    ``dpo_sft``: how much the chosen answer's own loss a token counts besides (0: plain DPO, which can leave both
    answers unlikely).

    A step is ``gradient_accumulation_steps`` times ``batch_size`` examples. ``lora_dropout`` is the share of the
    adapter's inner numbers, as many as its rank, that is left out while it is trained (None: by the plan). ``run`` is
    the folder of the run's checkpoints and curves (empty: one in the working folder, which goes with it); a run that
    has checkpoints there goes on from the last.

    ``quantization``: the frozen base is held in 4 bits (nf4: QLoRA) or 8 (int8); what is scored is an adapter on it.
    ``compute`` is the dtype that the base is computed in; "auto" tries which is faster here. ``dtype`` is the file's.
    ``gradient_checkpointing``: layers are computed twice to save memory; "auto" does so where that is short.
    ``offload``: so many of the base's last layers stay in its files (`placement.py`); None: as many as have to.

    ``canaries``: so many made-up secrets are learnt with the rows, which the leak report looks for. ``leak_report``
    measures at the end how much of the data the adapter gives away; ``routing`` makes the centroid of the prompts too.
    ``learnt_before`` are the data sets that what it goes on from has learnt: the report is on those, too.

    ``retention`` is the file of the base's retention set (empty: it is made), None where it is not wanted, neither to
    measure what was ``forgetting`` nor for ``replay``.
    ``replay`` is the share of the rows that are the base's own answers from there, so that it forgets less.
    """

    base: Readable
    dataset: Readable
    run: Writable = ""
    initial: Readable | None = None
    method: Literal["lora", "full"] = "lora"
    backend: Literal["auto", "torch", "mlx"] = "auto"
    extract_rank: int = 0
    rank: int = 0
    alpha: float | None = None
    rslora: bool = False
    modules: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    objective: Literal["auto", "sft", "dpo"] = "auto"
    dpo_beta: float = 0.1
    dpo_sft: float = 1.0
    learning_rate: float = 0.0
    batch_size: int = 0
    steps: int = 0
    epochs: float = 0.0
    max_steps: int = 0
    warmup_steps: int | None = None
    max_length: int = 0
    row_tokens: int = 0
    validation_split: float = 0.0
    schedule_total: int = 0
    schedule_offset: int = 0
    seed: int = 0
    dtype: str = "BF16"
    weight_decay: float = 0.0
    lora_dropout: float | None = None
    gradient_accumulation_steps: int = 1
    quantization: Literal["none", "nf4", "int8"] = "none"
    compute: Literal["auto", "F32", "BF16"] = "auto"
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    offload: int | None = None
    retention: Readable | None = None
    replay: float = 0.0
    early_stopping: EarlyStopping = EarlyStopping()
    checkpointing: Checkpointing = Checkpointing()
    canaries: int = 0
    leak_report: bool = False
    forgetting: bool = True
    routing: bool = False
    learnt_before: tuple[Readable, ...] = ()


def leak_settings(spec: TrainSpec, *, epochs: float, routing: bool) -> LeakSettings:
    """What a report on that training, which went through its rows ``epochs`` times, has to know of it."""
    return LeakSettings(
        seed=spec.seed,
        canaries=spec.canaries,
        validation_split=spec.validation_split,
        max_length=spec.max_length,
        routing=routing,
        epochs=epochs,
        dropout=spec.lora_dropout or 0.0,
        replay=spec.replay,
    )


def alpha_of(spec: TrainSpec) -> float:
    """As asked for; else what scales an adapter of rank 16, the usual one, by 2: with rsLoRA 8, else twice the rank."""
    if spec.alpha is not None:
        return float(spec.alpha)
    return RSLORA_ALPHA if spec.rslora else 2.0 * spec.rank


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a `TrainSpec` that a plan chooses, chosen. `Settled.put_into` makes the spec that is run.
    ``doubts`` say why the training is not worth its time, where it is not; ``computed`` in which dtype on what."""

    rank: int
    alpha: float
    learning_rate: float
    batch_size: int
    steps: int
    warmup_steps: int
    max_length: int
    row_tokens: int
    gradient_checkpointing: Literal["on", "off"]
    backend: Literal["torch", "mlx"] = "torch"
    lora_dropout: float = 0.0
    doubts: tuple[str, ...] = ()
    computed: str = ""

    def put_into(self, spec: TrainSpec) -> TrainSpec:
        return msgspec.structs.replace(spec, **{name: getattr(self, name) for name in self._settings()})

    def _settings(self) -> list[str]:
        return [name for name in self.__struct_fields__ if name not in ("doubts", "computed")]

    def unless(self, spec: TrainSpec) -> Settled:
        """With what ``spec`` asks for itself."""
        asked = {name: getattr(spec, name) for name in self._settings() if name != "max_length"}
        given = {name: value for name, value in asked.items() if value not in (0, None, "auto")}
        return msgspec.structs.replace(self, **given)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to say of one setting, ``field`` being its path (``early_stopping.patience``). ``hint`` is the
    next step; ``value`` what to set it to, where one is recommended."""

    field: str
    message: str
    hint: str = ""
    value: float | int | str | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A setting of `TrainSpec` to give another ``value``; with ``times``, so many times what it was."""

    option: str
    value: float
    times: bool = False


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """How a training went. ``step``: where it began to be overfitted. ``changes`` answer it in the next one."""

    verdict: Literal["fine", "overfitted", "not converged", "unstable"]
    detail: str
    step: int | None = None
    changes: tuple[Change, ...] = ()


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure over ``examples`` examples with its 95 % interval, None where they do not tell it.

    ``metric`` is one of `Comparison`'s, or perplexity, precision or recall (means over the labels)."""

    metric: str
    value: float
    low: float | None
    high: float | None
    examples: int


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of an adapter beside that of another one, or of the base (``against`` None), on the same examples.

    ``metric`` is loss (nats a token), or a share from 0 to 1: token_accuracy, exact_match, preferred, chrf, rouge_l,
    and f1 of labels (the mean over them). ``p`` is of a paired test by random exchanges of ``units`` (conversations or
    documents), the ``verdict`` at p < .05, "too few rows" where no p could be. ``low`` and ``high`` are the differences
    that the same test does not refuse; None where the examples do not tell them, and for f1.
    """

    adapter: str | None
    against: str | None
    metric: str
    value: float
    against_value: float
    low: float | None
    high: float | None
    p: float
    examples: int
    verdict: Literal["better", "worse", "not told apart", "too few rows"]
    units: int = 0


class Forgetting(msgspec.Struct, frozen=True, kw_only=True):
    """What became of answers that the base was known to give: mean nats a token of the base and with the adapter, the
    95 % interval of the rise, and the mean divergence KL(base || adapter) of the next token, in nats. On ``examples``
    rows of the base's retention set."""

    loss: float
    base_loss: float
    low: float
    high: float
    kl: float
    examples: int

    @property
    def rise(self) -> float:
        return self.loss - self.base_loss


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How well an adapter and the base alone do on one part of a data set. ``exact_match`` is None where nothing asks.

    ``preferred``: of preferences, the share whose chosen answer is likelier than the other; None for other data.
    ``measures`` are the adapter's figures, ``comparisons`` those beside the base's.
    """

    split: str
    loss: float
    base_loss: float
    exact_match: float | None
    base_exact_match: float | None
    examples: int
    preferred: float | None = None
    base_preferred: float | None = None
    measures: tuple[Measure, ...] = ()
    comparisons: tuple[Comparison, ...] = ()


class Extracted(msgspec.Struct, frozen=True, kw_only=True):
    """The adapter nearest to a training of whole weights. ``residual_ppm`` is what it lacks of the difference."""

    residual_ppm: int
    heldout: tuple[Score, ...]
    forgetting: Forgetting | None = None


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """``adapter`` and ``base`` are folders relative to the job's working folder, empty where none was made; with
    ``extracted`` the adapter was made from the base. ``tokens`` counts what the steps
    went through, prompts included; ``train_loss`` is the mean of the last tenth of the steps.

    ``stopped`` says why it ended after ``steps`` steps and ``epochs`` times through the examples; the adapter is that
    of ``best_step``, where the validation loss was ``validation_loss`` (None: nothing to validate on). ``skipped``
    counts the steps whose loss was no number. ``objective`` is sft or dpo. ``retention`` is the file of a retention set
    that was made on the way."""

    adapter: str
    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    dtype: str
    parameters: int
    examples: int
    tokens: int
    steps: int
    seed: int
    train_loss: float
    software: str
    seconds: float
    heldout: tuple[Score, ...]
    stopped: str
    best_step: int
    epochs: float
    skipped: int
    validation_loss: float | None
    diagnosis: Diagnosis
    objective: str = "sft"
    base: str = ""
    extracted: Extracted | None = None
    leak: LeakReport | None = None
    centroid: Centroid | None = None
    forgetting: Forgetting | None = None
    retention: str = ""
    settled: Settled


class AdapterPath(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter's id and name, and the PEFT folder where it lies."""

    id: str
    name: str = ""
    path: Readable


class EvaluateSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Score the base and any number of adapters on one part of a data set, beside the base each; with ``compare``, the
    later ones beside the first adapter too. Without ``answers`` only losses are measured, and without ``speed`` not how
    fast it answers.

    ``retention`` is the file of the base's retention set (empty: it is made), None where forgetting is not measured;
    ``fingerprint`` is the base's, to keep one that was made."""

    base: Readable
    adapters: tuple[AdapterPath, ...]
    dataset: Readable
    split: str = "test"
    include_base: bool = True
    answers: bool = True
    speed: bool = True
    compare: bool = False
    retention: Readable | None = None
    fingerprint: str = ""


class EvaluationRow(msgspec.Struct, frozen=True, kw_only=True):
    """``id`` and ``name`` None are the base alone. ``exact_match`` is None where nothing was asked.

    ``loss_interval`` is half the width of the loss's 95 % interval, None for a single conversation or document.
    ``labels`` where the answers are labels. ``first_token_ms`` and ``tokens_s`` are of answers one at a time, medians;
    ``memory`` is the most bytes that the process had had by then.
    """

    id: str | None
    name: str | None = None
    loss: float
    exact_match: float | None
    examples: int
    loss_interval: float | None = None
    measures: tuple[Measure, ...] = ()
    labels: tuple[LabelScore, ...] = ()
    first_token_ms: float | None = None
    tokens_s: float | None = None
    memory: int = 0
    forgetting: Forgetting | None = None


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """A question, what was wanted, and the answers in the order of the rows. Long texts are cut."""

    question: str
    wanted: str
    answers: tuple[str, ...]


class EvaluateResult(msgspec.Struct, frozen=True, kw_only=True):
    """``answers`` are some of them, for people to look at: ``asked`` questions were scored. ``retention`` is the file
    of a retention set that was made on the way, ``marks`` that of what the base alone got, where that was not kept."""

    rows: tuple[EvaluationRow, ...]
    split: str = "test"
    comparisons: tuple[Comparison, ...] = ()
    answers: tuple[Answered, ...] = ()
    asked: int = 0
    retention: str = ""
    marks: str = ""


class LeakSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Measure how much of its training data the adapter in the folder ``adapter`` gives away.

    ``datasets`` are the folders of what it was trained on; of the first the ``settings`` speak.
    """

    base: Readable
    adapter: Readable
    datasets: tuple[Readable, ...]
    settings: LeakSettings = LeakSettings()


class LeakResult(msgspec.Struct, frozen=True, kw_only=True):
    report: LeakReport
    centroid: Centroid | None = None


class UnpackSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Make a folder of the file ``gguf``. ``licence`` and ``source`` are written into its record."""

    gguf: Readable
    licence: str
    source: str


class UnpackResult(msgspec.Struct, frozen=True, kw_only=True):
    """``folder`` is relative to the job's working folder. ``has_template``: its tokenizer has a chat template."""

    folder: str
    has_template: bool
