"""A limit on this process's resident memory: refused before, checked while at work."""

from pathlib import Path

from hfcompress.errors import OptionError

TRAINED_BYTES = 16  # of a parameter that is trained in float32: itself, its gradient, and Adam's two moments


class MemoryLimit:
    """Holds the peak since it was made against a limit in GB (10^9 bytes); None limits nothing.

    Args:
        option: the option that the limit was given with, for messages.
    """

    def __init__(self, gigabytes: float | None, option: str) -> None:
        self.gigabytes, self.option = gigabytes, option
        reset_peak()

    def require(self, needed_bytes: float) -> None:
        """Refuse to begin.

        Raises:
            UserError: more is needed than the limit.
        """
        if self.gigabytes is not None and needed_bytes > self.gigabytes * 1e9:
            reason = (
                "the largest step takes some {needed:.2f} GB; raise the limit, or use an algorithm that needs no "
                "calibration (rtn)"
            )
            raise OptionError(self.option, reason, self.gigabytes, needed=needed_bytes / 1e9)

    def check(self, when: str) -> None:
        """Stop when the limit was passed.

        Raises:
            UserError: with the peak; what was written is kept.
        """
        if self.gigabytes is not None and self.peak_mb() > self.gigabytes * 1e3:
            reason = (
                "{peak:.2f} GB were resident {when}; raise the limit and run the same command again: finished layers "
                "are kept"
            )
            raise OptionError(self.option, reason, self.gigabytes, peak=self.peak_mb() / 1e3, when=when)

    def peak_mb(self) -> float:
        """The highest resident memory since this limit was made, in MB."""
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise OSError("/proc/self/status has no VmHWM")


def require_machine_memory(needed_bytes: float, option: str, value: object) -> None:
    """Refuse an option for what it would take before anything tries to.

    Args:
        option: a field of the options; value: what is given.

    Raises:
        UserError: it is more than this machine has.
    """
    import psutil

    has = psutil.virtual_memory().total
    if needed_bytes > has:
        reason = "what is made of it takes {needed:,.0f} GB of memory, and this machine has {has:,.0f} GB; give less"
        raise OptionError(option, reason, value, needed=needed_bytes / 1e9, has=has / 1e9)


def reset_peak() -> None:
    """Let the kernel count the peak anew (proc(5), clear_refs); where it does not, the process's whole peak counts."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return
