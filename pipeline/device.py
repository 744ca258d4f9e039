"""Where a stage computes, and with how many threads."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """`auto` takes a GPU if there is one. Raises ValueError for a device that this machine does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device `{name}` cannot be used here ({str(error).splitlines()[0]}); `cpu` always can"
        ) from None
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False  # may choose another algorithm, and other bits, in each run
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa are less than an adaptive solver's tolerance
    return device


def set_threads(number: int) -> None:
    """Threads of this process. Two jobs that each took all cores of a machine were seen to run 8-13 times slower."""
    torch.set_num_threads(number)
    torch.set_num_interop_threads(1)
