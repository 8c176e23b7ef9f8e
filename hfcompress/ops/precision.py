"""Which precision to compute in: bf16 where the hardware has instructions for it."""

from pathlib import Path


def use_bf16(choice: str) -> bool:
    """Return whether to compute in bf16: as asked, or on "auto" where the hardware has instructions for it."""
    import torch

    if choice != "auto":
        return choice == "yes"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
