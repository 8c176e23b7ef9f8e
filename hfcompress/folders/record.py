"""Record <-> record.json: what made an Artifact, and the environment it was made in."""

import hashlib
import json
import math
import platform
import resource
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError
from hfcompress.folders.files import whole_file
from hfcompress.folders.inside import component, inside, relative

PACKAGES = (
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "onnxruntime",
    "onnx",
    "datasets",
    "accelerate",
    "scikit-learn",
    "torch-pruning",
    "tensorly",
    "numpy",
    "hfcompress",
)

EXTENSIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Record:
    """What made an Artifact: written last into its folder, so a folder with a record is a finished Artifact."""

    name: str
    stage: str
    key: str
    options: dict[str, Any]
    inputs: dict[str, str]
    seconds: float
    peak_rss_mb: float
    format: str
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    files: dict[str, int]
    measured: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    """Of each file, so that a copy elsewhere can be held against this record."""
    schema_version: int = 1

    def write(self, folder: Path) -> None:
        """Write record.json by rename, so that it is there whole or not at all."""
        write_json(folder / "record.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Read the record of a finished Artifact.

        Raises:
            UserError: record.json is missing, is not JSON, or has other fields than a Record.
        """
        path = inside(folder, "record.json")
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
            found.require_types()
        except FileNotFoundError:
            raise UserError(f"{folder} is not a finished Artifact: it has no record.json") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path} is corrupt ({error}); delete the folder {folder} to have its stage made again"
            ) from None
        component(found.name, str(path))
        for name in found.files | found.sha256:
            relative(name, str(path))
        return found

    def require_types(self) -> None:
        """Refuse a record whose fields are not what the class says.

        Raises:
            ValueError: one is not.
        """
        tables = (self.options, self.inputs, self.dtypes, self.files, self.measured, self.environment, self.sha256)
        if not all(isinstance(table, dict) for table in tables):
            raise ValueError("one of its fields is no table")
        texts = (self.name, self.stage, self.key, self.format, *self.sha256.values(), *self.inputs.values())
        numbers = (self.seconds, self.peak_rss_mb, self.parameters, self.bytes, *self.files.values())
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name in it is no text")
        if not all(isinstance(n, int | float) and 0 <= n < math.inf for n in (*numbers, *self.dtypes.values())):
            raise ValueError("a size in it is no number from 0")


def sha256(file: Path) -> str:
    """The hash of a file's bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside its place, flush it to the disk, then rename: a reader never sees half a file."""
    with whole_file(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: Path, *fields: str) -> Any:
    """The object in a run's file.

    Args:
        fields: it must have.

    Raises:
        UserError: there is no such file, it is not JSON, or no object with these fields.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        if missing := [field for field in fields if field not in found]:
            raise ValueError(f"it has no {missing[0]}")
        return found
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path}: no such file; is {path.parent} the folder of a finished run? (of one made by an older version, "
            "run the recipe again: finished stages are kept)"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is corrupt ({error}); run the recipe again, finished stages are kept") from None


def environment() -> dict[str, Any]:
    """Versions, processor, threads and GPU: everything a number in a report depends on, and nothing personal."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": {"python": platform.python_version(), **versions},
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cpu_name() -> str:
    """The processor as the kernel names it, with the extensions that decide the speed of int8 and bf16."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    name = next((v.strip() for k, v in fields.items() if k.strip() == "model name"), platform.machine())
    flags = next((v.split() for k, v in fields.items() if k.strip() == "flags"), [])
    wanted = [flag for flag in EXTENSIONS if flag in flags]
    return f"{name} ({' '.join(wanted)})" if wanted else name


def slow_integers(cpu: str) -> str | None:
    """A sentence for whoever reads a latency, where the processor (as `cpu_name` gives it) is x86 without VNNI."""
    if "avx" not in cpu or "vnni" in cpu:
        return None
    return (
        f"Latencies and their ratios hold for {cpu} and its like: without VNNI, 8-bit products take about as long as "
        "float32 ones; with it they take half as long or less."
    )


def peak_rss_mb() -> float:
    """The highest resident memory of this process so far, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
