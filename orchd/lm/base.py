"""Load a base: a Hugging Face folder on this disk, never a network, a pickle or somebody's code."""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import msgspec
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from orchd.errors import BaseUnusable, QuantizationMissing
from orchd.lm.losses import scorer_of

if TYPE_CHECKING:
    from orchd.lm.outside import Outside

Quantization = Literal["none", "nf4", "int8"]
warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
getLogger("accelerate.big_modeling").setLevel(ERROR)
logging.set_verbosity_error()  # type: ignore[no-untyped-call]
logging.disable_progress_bar()  # type: ignore[no-untyped-call]

#: File endings that may hold pickled objects; a base with nothing but these is refused.
_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Base:
    """A loaded base. ``model`` is a `transformers` causal language model in eval mode, ``tokenizer``
    its tokenizer with a chat template. Loading an adapter changes ``model`` in place. Layers ``outside`` are not
    held in memory."""

    model: Any
    tokenizer: Any
    path: Path
    outside: Outside | None = None

    @property
    def layers_outside(self) -> int:
        return 0 if self.outside is None else self.outside.layers


def best_device() -> str:
    """Where to train and evaluate: ``cuda``, ``mps`` or ``cpu``. Only ``cpu`` has been run by the authors."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_base(
    path: Path | str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    quantization: Quantization = "none",
    outside: int = 0,
) -> Base:
    """Load the folder ``path`` in ``dtype`` (computing in float32 from BF16 files loses nothing).

    With ``quantization`` the linear maps of the layers are held in 4 bits (NF4, their scales quantised too; Dettmers
    et al., QLoRA, 2023) or 8, and computed in ``dtype``; only an adapter can be trained then. The last ``outside``
    layers stay in the files: accelerate brings each to ``device`` when it is computed. Raises `BaseUnusable` when the
    folder is no usable base, and `QuantizationMissing`.
    """
    folder = Path(path)
    check_folder(folder)
    tokenizer = load_tokenizer(folder)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **_quantized(quantization, dtype, device),
            **_placed(folder, device, outside),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BaseUnusable(f"{folder.name}: {_first_line(error)}", field="base") from error
    if outside:
        from orchd.lm.outside import Outside  # accelerate takes a while to import

        try:
            layers = Outside(model, folder, outside)
        except KeyError as error:
            hint = "Train with `--offload 0`: all layers are held then."
            raise BaseUnusable(f"{folder.name}: none of its files has {error}", hint=hint, field="base") from None
        return Base(model.eval().requires_grad_(False), tokenizer, folder, layers)
    if quantization == "none":
        model = model.to(device)
    return Base(model.eval().requires_grad_(False), tokenizer, folder)


def _quantized(quantization: Quantization, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """What transformers wants to be told. Raises `QuantizationMissing`."""
    if quantization == "none":
        return {}
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise QuantizationMissing(f"{quantization} needs the Python package {package}, which isn't installed")
    from transformers import BitsAndBytesConfig

    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    how = four | {"bnb_4bit_compute_dtype": dtype} if quantization == "nf4" else {"load_in_8bit": True}
    return {"quantization_config": BitsAndBytesConfig(**how), "device_map": {"": device}}  # type: ignore[no-untyped-call]


def _placed(folder: Path, device: str, outside: int) -> dict[str, Any]:
    """What transformers wants to be told of where each module lies."""
    if not outside:
        return {}
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        empty: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    body = empty.base_model_prefix
    layers = len(empty.get_decoder().layers)
    inside = {f"{body}.{name}" for name, _ in getattr(empty, body).named_children() if name != "layers"}
    inside |= {name for name, _ in empty.named_children() if name != body}
    places = dict.fromkeys(inside, device)
    places |= {f"{body}.layers.{at}": "disk" if at >= layers - outside else device for at in range(layers)}
    return {"device_map": places, "offload_folder": str(folder)}  # named, not written to: safetensors are read there


def device_of(base: Base) -> str:
    """What computes the base, as people read it: cpu, cuda, mps, mlx (cpu), mlx (gpu)."""
    scorer = scorer_of(base.model)
    return str(base.model.device.type if scorer is None else scorer.device)


def load_tokenizer(path: Path | str) -> Any:
    """The tokenizer of the base in the folder ``path``, with its chat template. Raises `BaseUnusable`."""
    folder = Path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BaseUnusable(f"{folder.name}: {_first_line(error)}", field="base") from error
    if tokenizer.chat_template is None:
        hint = "Choose an instruct model, which has one, or put its makers' chat_template.jinja into the folder."
        raise BaseUnusable(f"{folder.name}: its tokenizer has no chat template", hint=hint, field="base")
    return tokenizer


def context_length(path: Path | str) -> int:
    """The most tokens that the base in the folder ``path`` takes in, as its configuration says; 0 where it doesn't."""
    try:
        config = msgspec.json.decode((Path(path) / "config.json").read_bytes(), type=_Context)
    except (OSError, msgspec.DecodeError) as error:
        raise BaseUnusable(f"{Path(path).name}: config.json: {error}", field="base") from error
    return config.max_position_embeddings or 0


class _Context(msgspec.Struct):
    max_position_embeddings: int | None = None


def check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise BaseUnusable(f"{folder.name}: no config.json in it", field="base")
    if not any(folder.glob("*.safetensors")):
        found = [path.name for path in folder.iterdir() if path.suffix in _PICKLES]
        detail = f" ({', '.join(sorted(found))} could hold code)" if found else ""
        raise BaseUnusable(f"{folder.name}: no safetensors file in it{detail}", field="base")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
