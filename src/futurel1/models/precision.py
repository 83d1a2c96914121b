"""The dtype that autocast asks of code which PyTorch does not cast by itself."""

import torch


def autocast_dtype(device: torch.device | str) -> torch.dtype | None:
    """Dtype of autocast on a device; None without autocast, also on devices that have none."""
    kind = torch.device(device).type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
