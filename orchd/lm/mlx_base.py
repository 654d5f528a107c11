"""A base that mlx computes instead of torch: Apple's library, for its processors (and, slower than torch, for Linux).

Only the base is mlx's, with mlx-lm's models and LoRA layers: it scores packed rows and gives the gradients of the
adapter. The adapter itself, its optimiser, its random numbers and its files are torch's and PEFT's as always, on a
model of the base's shape without weights. So there is one training loop, and what it leaves is the same PEFT adapter.

Loads a folder on this disk, never a network, a pickle or somebody's code. On a processor mlx would call a C++ compiler
while it runs; that is switched off.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import mlx.core as mx
import numpy as np
import torch
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.nn.losses import cross_entropy
from mlx.utils import tree_unflatten
from mlx_lm.models.base import create_causal_mask
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.trainer import grad_checkpoint
from mlx_lm.utils import load_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from orchd.errors import BackendUnfit, BaseUnusable
from orchd.lm.base import Base, check_folder, load_tokenizer
from orchd.lm.chat import Encoded

DTYPES: Final = {torch.float32: mx.float32, torch.bfloat16: mx.bfloat16}
SAME: Final = 0.05
"""Logits of a packed row may differ so much from separate ones, as a share of their spread: bfloat16 rounds that far,
and documents that see each other differ by more than their spread."""

TWINS_SAME: Final = 1e-3
"""The same of the twins, which are computed in float32: 9e-7 was measured; another angle of positions makes .3."""

TWIN: Final = {"num_hidden_layers": 4, "vocab_size": 256, "intermediate_size": 256, "sliding_window": 8}

TRIED: Final = ((3, 1, 4, 1, 5, 9, 2, 6), (2, 7, 1, 8, 2, 8))
"""Two documents, as token ids, on which packing is tried."""

if mx.default_device().type == mx.cpu:
    mx.disable_compile()

Arrays = dict[str, mx.array]


def load_mlx_base(path: Path | str, dtype: torch.dtype = torch.float32) -> Base:
    """Load the folder ``path`` to be computed in ``dtype`` by mlx. The model that is given has no weights; its
    ``scorer`` has them. Raises `BaseUnusable`, and `BackendUnfit` where mlx-lm has no such model."""
    folder = Path(path)
    check_folder(folder)
    _check_config(folder)
    tokenizer = load_tokenizer(folder)
    try:
        model: Any = _hollow(folder, dtype)
        positions = _positions(folder)
        alike = _twins_are_alike(folder, positions)
        computing, _ = load_model(folder, model_config=positions, trust_remote_code=False)
    except (Exception, SystemExit) as error:  # a model of mlx-lm's may end the process where it lacks a package
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendUnfit(f"mlx can't load {folder.name}: {first}", field="backend") from error
    if not alike:
        raise BackendUnfit(f"mlx computes {folder.name} otherwise than torch does", field="backend")
    computing.set_dtype(DTYPES[dtype])
    _check_places(model, computing, folder.name)
    model.scorer = Scorer(computing)
    return Base(model.eval(), tokenizer, folder)


def let_go(base: Base) -> None:
    """Free the base's weights; it can't be scored afterwards."""
    base.model.scorer = None
    mx.clear_cache()


def trial(dtype: torch.dtype, device: str) -> float:
    """Seconds of one matrix product forward and backward, as `precision.trial`. ``device`` is mlx's own choice."""
    left, right = mx.ones((256, 1024), DTYPES[dtype]), mx.ones((1024, 1024), DTYPES[dtype])
    mx.eval(left, right)
    begun = time.perf_counter()
    mx.eval(mx.grad(lambda a, b: (a @ b).sum(), argnums=(0, 1))(left, right))
    return time.perf_counter() - begun


def _check_config(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
        keys = set(config)
    except (OSError, ValueError, TypeError) as error:
        raise BaseUnusable(f"{folder.name}: config.json: {error}", field="base") from error
    if "model_file" in keys:
        hint = "mlx-lm would run that file. Take a base of a known architecture."
        detail = f"{folder.name}: config.json names a file of code, {str(config['model_file'])[:100]!r}"
        raise BaseUnusable(detail, hint=hint, field="base")
    if keys & {"quantization", "quantization_config"}:
        raise BackendUnfit(f"{folder.name} is quantised already; mlx trains on a base in full weights", field="base")


def _positions(folder: Path) -> dict[str, Any]:
    """How positions are turned, as mlx-lm reads it. Transformers 5 writes it otherwise, and mlx-lm 0.32 takes another
    angle then without a word."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    found = dict(getattr(config, "rope_parameters", None) or {})
    if "rope_theta" not in found:
        return {}
    theta = {"rope_theta": found.pop("rope_theta")}
    return theta if found.get("rope_type", "default") == "default" else theta | {"rope_scaling": found}


def _twins_are_alike(folder: Path, positions: dict[str, Any]) -> bool:
    """A small base of the same configuration, with random weights, is computed by torch and by mlx: are they the same?

    It is as wide, but has no more than `TWIN`: a window is so short that a library which leaves it out is seen to."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    least = {name: min(value, getattr(config, name)) for name, value in TWIN.items() if getattr(config, name, None)}
    config.update(least | {"pad_token_id": None})
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    ids = [token for one in TRIED for token in one] * 2
    with torch.random.fork_rng(), torch.no_grad(), tempfile.TemporaryDirectory() as apart:
        torch.manual_seed(0)
        twin: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32, trust_remote_code=False
        )
        for tensor in twin.parameters():
            if tensor.ndim > 1:  # strong enough that attention looks at places
                tensor.normal_(0, 1.5 / tensor.shape[-1] ** 0.5)
        twin.save_pretrained(apart)
        want = twin.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
        other, _ = load_model(Path(apart), model_config=positions, trust_remote_code=False)
        return _alike(mx.array(want), other(mx.array([ids]))[0], TWINS_SAME)


def _hollow(folder: Path, dtype: torch.dtype) -> Any:
    """The base's transformers model, each of whose weights is one number seen in its shape: next to no memory."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, trust_remote_code=False
        )
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                room = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                module._parameters[name] = torch.nn.Parameter(room, requires_grad=False)
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    return model


def _check_places(model: Any, computing: Any, called: str) -> None:
    """Every linear map that PEFT may put an adapter on has to be one of mlx's, of that shape. Raises `BackendUnfit`."""
    there = {name: module.weight.shape for name, module in computing.named_modules() if isinstance(module, Linear)}
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head and there.get(name) != tuple(module.weight.shape):
            raise BackendUnfit(f"mlx builds {called} otherwise: it has no {name} of that shape", field="backend")


class Scorer:
    """Token losses of packed rows by mlx, with gradients for the adapter that a model has at that moment."""

    def __init__(self, model: Any) -> None:
        model.freeze()
        self._model = model.eval()
        self._adapted: tuple[tuple[str, int, float, float], ...] = ()
        self._where: mx.array | None = None
        self._gathers = _gathering(self)
        self._recomputes = False
        self._packs = self._same_when_packed()

    @property
    def device(self) -> str:
        """As people read it: mlx (cpu) or mlx (gpu)."""
        return f"mlx ({mx.default_device().type.name})"

    @property
    def peak_bytes(self) -> int:
        """The most memory that mlx has had."""
        return int(mx.get_peak_memory())

    def recompute(self) -> None:
        """Have the layers keep their inputs only, as `precision.recompute`."""
        if not self._recomputes:
            grad_checkpoint(self._model.layers[0])
        self._recomputes = True

    def token_scores(self, model: Any, row: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """As `losses.token_scores`; ``model`` is the one without weights, with the adapter to compute with."""
        layers = {
            name.removeprefix("base_model.model."): module
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer) and not module.disable_adapters
        }
        self._adopt(layers)
        self._draw(model.training)
        factors = [tensor for layer in layers.values() for tensor in _factors(layer)]
        parameters = _parameters(layers)
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in factors):
            losses, hits = self._scores(parameters, row)
            mx.eval(losses, hits)
            return _tensor(losses), _tensor(hits)
        pass_ = _Pass(self, parameters, row)
        return _Differentiable.apply(pass_, *factors), _tensor(pass_.hits)  # type: ignore[no-untyped-call]

    def _adopt(self, layers: Mapping[str, LoraLayer]) -> None:
        """Put mlx-lm's LoRA layers where ``layers`` are, and nowhere else."""
        wanted = tuple((name, *_shape(layer)) for name, layer in layers.items())
        if wanted == self._adapted:
            return
        changed = [(name, one.linear) for name, one in self._model.named_modules() if isinstance(one, LoRALinear)]
        if changed:
            self._model.update_modules(tree_unflatten(changed))
        plain = dict(self._model.named_modules())
        made = []
        for name, rank, scale, dropout in wanted:
            layer = _Adapted.from_base(plain[name], r=rank, scale=scale)
            layer.__class__ = _Adapted
            layer.dropout = _Dropout(dropout)
            made.append((name, layer))
        if made:
            self._model.update_modules(tree_unflatten(made))
        self._adapted = wanted

    def _draw(self, training: bool) -> None:
        """New dropout, by torch's generator: a checkpoint has its state."""
        dropouts = [one for _, one in self._model.named_modules() if isinstance(one, _Dropout) and one.share]
        if not dropouts:
            return
        seed = int(torch.randint(2**31, ())) if training else 0
        for key, dropout in zip(mx.random.split(mx.random.key(seed), len(dropouts)), dropouts, strict=True):
            dropout.draw(key if training else None)

    def _scores(self, parameters: Arrays, row: Sequence[Encoded]) -> tuple[mx.array, mx.array]:
        self._model.update(tree_unflatten(list(parameters.items())))
        wanted = [token for one in row for token, counts in zip(one.ids[1:], one.counted[1:], strict=True) if counts]
        logits = self._logits(row).astype(mx.float32)
        tokens = mx.array(wanted)
        return cross_entropy(logits, tokens, reduction="none"), mx.argmax(logits, -1) == tokens

    def _logits(self, row: Sequence[Encoded]) -> mx.array:
        """(counted tokens, vocabulary), in the order of the row."""
        if self._packs:
            return self._passed([[token for one in row for token in one.ids]], _places(row), _documents(row))
        order = sorted(range(len(row)), key=lambda index: len(row[index].ids))
        parts: dict[int, mx.array] = {}
        for _, indexes in groupby(order, key=lambda index: len(row[index].ids)):
            together = [row[index] for index in indexes]
            logits = self._passed([list(one.ids) for one in together], _places(together))
            ends = np.cumsum([_learnt(one) for one in together])[:-1].tolist()
            parts |= dict(zip(map(id, together), mx.split(logits, ends), strict=True))
        return mx.concatenate([parts[id(one)] for one in row])

    def _passed(self, ids: list[list[int]], places: list[int], mask: mx.array | None = None) -> mx.array:
        """One forward pass of documents of one length; logits at ``places`` of them all, laid end to end."""
        cache = None if mask is None else [_Together(mask)] * len(self._model.layers)
        where = mx.array(places)
        self._where = where if self._gathers else None
        try:
            logits = self._model(mx.array(ids), cache=cache)
        finally:
            self._where = None
        if self._gathers:
            found: mx.array = logits[0]
        else:
            found = logits.reshape(-1, logits.shape[-1])[where]
        return found

    def _same_when_packed(self) -> bool:
        """Is a packed row the same as separate ones? It is with attention by relative positions and nothing else."""
        pair = [Encoded(ids, (False, *[True] * (len(ids) - 1))) for ids in TRIED]
        plain = [self._model(mx.array([list(one.ids)]))[0, :-1] for one in pair]
        apart = mx.concatenate(plain).astype(mx.float32)
        if self._gathers:  # models differ in what comes after the layers
            gathered = mx.concatenate([self._passed([list(one.ids)], _places([one])) for one in pair])
            self._gathers = _alike(apart, gathered)
        try:
            packed = self._passed([[*pair[0].ids, *pair[1].ids]], _places(pair), _documents(pair))
            return _alike(apart, packed)
        except (AttributeError, TypeError, ValueError, IndexError):
            return False


def _alike(one: mx.array, other: mx.array, share: float = SAME) -> bool:
    """Do they differ by at most that share of their spread?"""
    spread = (one.max() - one.min()).item()
    return one.shape == other.shape and bool((mx.abs(one - other.astype(mx.float32)).max() <= share * spread).item())


class _Pass:
    """One row's losses, and their gradients when they are asked for: mlx computes what is looked at and no more."""

    def __init__(self, scorer: Scorer, parameters: Arrays, row: Sequence[Encoded]) -> None:
        self._scorer, self._parameters, self._row = scorer, parameters, row
        (_, self.losses, self.hits), self._summed = self._with_gradients(None)
        mx.eval(self.losses, self.hits)

    def _with_gradients(self, weights: mx.array | None) -> tuple[tuple[mx.array, mx.array, mx.array], Arrays]:
        """Of the sum of the losses, or of the sum by ``weights``."""

        def total(parameters: Arrays) -> tuple[mx.array, mx.array, mx.array]:
            losses, hits = self._scorer._scores(parameters, self._row)
            return (losses if weights is None else losses * weights).sum(), losses, hits

        found: tuple[tuple[mx.array, mx.array, mx.array], Arrays] = mx.value_and_grad(total)(self._parameters)
        return found

    def gradients(self, weights: Tensor) -> Iterable[Tensor]:
        """Of the factors, in their order, for losses that count ``weights``. Where these are all the same, as they are
        for a mean, the first pass is used; else there is a second one."""
        first = float(weights[0])
        if bool((weights == weights[0]).all()):
            found, scale = self._summed, first
        else:
            found, scale = self._with_gradients(mx.array(weights.numpy()))[1], 1.0
        mx.eval(found)
        return [scale * _tensor(found[name].T) for name in self._parameters]


class _Differentiable(torch.autograd.Function):
    """Losses that mlx computed, in torch's graph."""

    @staticmethod
    def forward(ctx: Any, pass_: _Pass, *factors: Tensor) -> Tensor:
        ctx.pass_ = pass_
        return _tensor(pass_.losses)

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> Any:
        return None, *ctx.pass_.gradients(weights[0])


class _Adapted(LoRALinear):  # type: ignore[misc]
    """mlx-lm's leaves out what comes into A, `start_adapter` what comes out of it."""

    def __call__(self, x: mx.array) -> mx.array:
        inner = self.dropout(x @ self.lora_a) @ self.lora_b
        made: mx.array = self.linear(x) + (self.scale * inner).astype(x.dtype)
        return made


class _Dropout(Module):  # type: ignore[misc]
    """Drawn from a key, so that a layer that is computed twice leaves out the same."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self._key: mx.array | None = None

    def draw(self, key: mx.array | None) -> None:
        self._key = key

    def __call__(self, x: mx.array) -> mx.array:
        if self._key is None:
            return x
        return x * mx.random.bernoulli(1 - self.share, x.shape, key=self._key) / (1 - self.share)


class _Together:
    """Stands where mlx-lm's models take a cache: nothing came before, and the row's documents are apart."""

    offset = 0

    def __init__(self, mask: mx.array) -> None:
        self._mask = mask

    def make_mask(self, count: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        return self._mask if window_size is None else self._mask & create_causal_mask(count, window_size=window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values


def _gathering(scorer: Scorer) -> bool:
    """Have the head run only where a token counts: the body's output is cut down to `Scorer._where`. Whether it can
    be done with this model; `Scorer` tries if it is right."""
    body = getattr(scorer._model, "model", None)
    if not isinstance(body, Module):
        return False
    kind: Any = type(body)

    class Gathering(kind):  # type: ignore[misc]
        def __call__(self, *arguments: Any, **named: Any) -> Any:
            hidden = super().__call__(*arguments, **named)
            if scorer._where is None:
                return hidden
            return hidden.reshape(-1, hidden.shape[-1])[scorer._where][None]

    body.__class__ = Gathering
    return True


def _documents(row: Sequence[Encoded]) -> mx.array:
    """Who sees whom: bool (tokens, tokens); earlier ones of the same document."""
    owner = mx.array([number for number, one in enumerate(row) for _ in one.ids])
    earlier: mx.array = create_causal_mask(len(owner))
    return (owner[:, None] == owner[None]) & earlier


def _places(row: Sequence[Encoded]) -> list[int]:
    """Where the logits stand that counted tokens are scored by, with the documents laid end to end."""
    found, start = [], 0
    for one in row:
        found += [start + at for at, counts in enumerate(one.counted[1:]) if counts]
        start += len(one.ids)
    return found


def _learnt(one: Encoded) -> int:
    return sum(one.counted[1:])


def _factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    (name,) = layer.active_adapters
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    return a, b


def _shape(layer: LoraLayer) -> tuple[int, float, float]:
    """Rank, scale, and dropout."""
    (name,) = layer.active_adapters
    return layer.r[name], float(layer.scaling[name]), float(getattr(layer.lora_A[name], "dropout", 0.0))


def _parameters(layers: Mapping[str, LoraLayer]) -> Arrays:
    """mlx-lm holds both factors the other way round."""
    found = {}
    for name, layer in layers.items():
        for factor, tensor in zip(("lora_a", "lora_b"), _factors(layer), strict=True):
            found[f"{name}.{factor}"] = mx.array(tensor.detach().float().cpu().numpy()).T
    return found


def _tensor(array: mx.array) -> Tensor:
    return torch.from_numpy(np.array(array))
