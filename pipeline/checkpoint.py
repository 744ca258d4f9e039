"""All that a resume needs, saved by replacement; the trained model, as safetensors.

Nothing is unpickled: resume.pt is read with weights_only, the model with safetensors.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.config import JobConfig, canonical, job_id
from pipeline.records import replace_file

FORMAT = 3


def save(path: str | Path, config: JobConfig, state: dict[str, Any]) -> None:
    """Write a checkpoint. `state` holds tensors and plain data. On failure (OSError) the former one stands."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "job": job_id(config)} | state, buffer)
    replace_file(path, buffer.getvalue())


def load(path: str | Path, config: JobConfig) -> dict[str, Any] | None:
    """The state of this job's checkpoint, None if there is none. ValueError if it is damaged or another job's."""
    if not Path(path).exists():
        return None
    way_out = "delete it to begin this training again"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # zip, pickle and torch each raise their own for a file that is cut off or foreign
        raise ValueError(f"{path}: not a whole checkpoint of ours ({type(error).__name__}); {way_out}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path}: not a checkpoint of this version; {way_out}")
    if state["job"] != job_id(config):
        raise ValueError(f"{path}: belongs to the job {state['job']}, not to {job_id(config)}; {way_out}")
    return state


def save_model(path: str | Path, config: JobConfig, network: nn.Module) -> None:
    """The weights, and the job's config as metadata: the file alone says what it is."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    metadata = {"config": json.dumps(canonical(config))}  # one entry: the order of several would be random
    replace_file(path, safetensors.torch.save(weights, metadata))


def load_model(path: str | Path, network: nn.Module) -> None:
    """Fill the network with saved weights. ValueError if the file is damaged or another network's."""
    way_out = "delete it, and the job is trained again"
    try:
        weights: dict[str, Tensor] = safetensors.torch.load_file(path)
        network.load_state_dict(weights)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); {way_out}") from None
    except RuntimeError as error:
        raise ValueError(f"{path}: weights of another network ({error}); {way_out}") from None
