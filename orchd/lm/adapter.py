"""LoRA adapters on a base: start, load, save. Only plain PEFT LoRA in safetensors, checked strictly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from orchd.errors import AdapterUnfit
from orchd.lm.base import Base
from orchd.lm.tensors import write_tensors

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
DTYPES: Final = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The part of ``adapter_config.json`` that changes what an adapter computes.

    The fields after ``alpha_pattern`` are only there to be refused when they are set.
    """

    r: int
    lora_alpha: float
    target_modules: tuple[str, ...] | str
    peft_type: str = "LORA"
    use_rslora: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    use_dora: bool | None = False
    bias: str = "none"
    fan_in_fan_out: bool | None = False
    lora_bias: bool | None = False
    modules_to_save: tuple[str, ...] | None = None
    layers_to_transform: tuple[int, ...] | int | None = None
    target_parameters: tuple[str, ...] | None = None
    trainable_token_indices: Any = None

    @property
    def scale(self) -> float:
        """The factor on B·A where no pattern says otherwise."""
        return float(self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r))


def read_config(folder: Path) -> AdapterConfig:
    """Parse and check ``adapter_config.json``. Raises `AdapterUnfit`."""
    try:
        config = msgspec.json.decode((folder / CONFIG_FILE).read_bytes(), type=AdapterConfig)
    except (OSError, msgspec.DecodeError) as error:
        raise AdapterUnfit(f"{folder.name}: {CONFIG_FILE}: {error}", field="adapter") from error
    unwanted = [
        name
        for name in AdapterConfig.__struct_fields__[7:]
        if getattr(config, name) not in (None, False, "none", (), {})
    ]
    if config.peft_type != "LORA" or unwanted or config.r < 1:
        detail = ", ".join(unwanted) or f"peft_type {config.peft_type}, r {config.r}"
        raise AdapterUnfit(f"{folder.name}: not a plain LoRA: {detail}", field="adapter")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The factors by their PEFT names, in the dtype of the file. Raises `AdapterUnfit`."""
    try:
        return load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise AdapterUnfit(f"{folder.name}: {WEIGHTS_FILE}: {error}", field="adapter") from error


def start_adapter(
    base: Base,
    rank: int,
    alpha: float,
    target_modules: Sequence[str] | str = "all-linear",
    dropout: float = 0.0,
    rslora: bool = False,
) -> Any:
    """Put a new adapter on ``base`` (in place), float32: A random from torch's generator, B zero.

    ``dropout`` is the share of the numbers between A and B (a token's and a module's, as many as the rank) that is left
    out while it is trained; with ``rslora`` it is scaled by alpha/√rank.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
        use_rslora=rslora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    drawn = torch.get_rng_state()
    model = get_peft_model(base.model, config)
    if base.outside is not None:
        torch.set_rng_state(drawn)
        _draw(model, base.model.device)
    if dropout:
        _leave_out(model, dropout)
    return model


def _leave_out(model: Any, share: float) -> None:
    """PEFT's own dropout is of what comes into A: as many numbers as the base is wide, drawn and kept for each module,
    which takes half as long as the module itself where that is 576 wide, and half as much memory again as a pass."""
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        between: Any = layer.lora_A["default"]
        between.dropout = share
        between.register_forward_hook(_left_out)


def _left_out(between: Any, _: object, made: Tensor) -> Tensor:
    return torch.nn.functional.dropout(made, between.dropout, between.training)


def _draw(model: Any, device: torch.device) -> None:
    """Draw the adapter's numbers, which PEFT leaves out in layers that are not held.

    In all layers, in PEFT's order: these are the numbers that it draws where every layer is held.
    """
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        factors: list[Any] = [layer.lora_A["default"], layer.lora_B["default"]]
        for factor in factors:
            factor.to_empty(device=device).reset_parameters()
        layer.reset_lora_parameters("default", init_lora_weights=True)  # type: ignore[no-untyped-call]


def load_adapter(base: Base, folder: Path | str) -> Any:
    """Put the adapter in ``folder`` on ``base`` (in place), for inference; the model in eval mode.

    ``model.unload()`` gives the plain base model back. Raises `AdapterUnfit` when the files are no
    plain LoRA or do not fit this base in names and shapes.
    """
    folder = Path(folder)
    config = read_config(folder)
    weights = read_weights(folder)
    peft_config = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        target_modules=config.target_modules if isinstance(config.target_modules, str) else list(config.target_modules),
        use_rslora=config.use_rslora,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    try:
        model = get_peft_model(base.model, peft_config)
    except ValueError as error:
        raise AdapterUnfit(f"{folder.name}: {error}", field="adapter") from error
    try:
        set_weights(model, weights)
    except AdapterUnfit:
        model.unload()
        raise
    return model.eval()


def set_weights(model: Any, weights: dict[str, Tensor]) -> None:
    """Copy ``weights`` (PEFT names) into the model's adapter. Raises `AdapterUnfit` unless names and
    shapes are exactly the model's own."""
    own = get_peft_model_state_dict(model)
    missing = sorted(own.keys() - weights.keys())
    strange = sorted(weights.keys() - own.keys())
    if missing or strange:
        name = (missing or strange)[0]
        kind = "missing" if missing else "without a place in this base"
        raise AdapterUnfit(f"{len(missing) + len(strange)} tensors, {name} first, {kind}")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            got, want = list(weights[name].shape), list(tensor.shape)
            raise AdapterUnfit(f"{name} is {got}, this base needs {want}")
    set_peft_model_state_dict(model, weights)


def adapter_weights(model: Any) -> dict[str, Tensor]:
    """The model's adapter as PEFT names → detached float32 tensors that share its memory."""
    return {name: tensor.detach() for name, tensor in sorted(get_peft_model_state_dict(model).items())}


def save_adapter(model: Any, folder: Path, dtype: str = "BF16") -> AdapterConfig:
    """Write a PEFT folder that names no path, host or person; the same input gives the same bytes.

    ``dtype`` is a key of `DTYPES`. Returns the configuration that was written.
    """
    used = model.peft_config["default"]
    config = AdapterConfig(
        r=used.r,
        lora_alpha=float(used.lora_alpha),
        target_modules=tuple(sorted(used.target_modules)),
        use_rslora=bool(used.use_rslora),
    )
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: t.to(DTYPES[dtype]).contiguous() for name, t in adapter_weights(model).items()}
    write_tensors(weights, folder / WEIGHTS_FILE, {"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)
    (folder / CONFIG_FILE).write_text(json.dumps(peft_json(config), indent=1, sort_keys=True))
    return config


def peft_json(config: AdapterConfig) -> dict[str, object]:
    """``adapter_config.json`` of an adapter that names no path, host or person."""
    alpha = config.lora_alpha
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": config.r,
        "target_modules": list(config.target_modules),
        "task_type": "CAUSAL_LM",
        "use_rslora": config.use_rslora,
    }
