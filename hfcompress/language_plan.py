"""A causal LM on a device, as `plan` tells it: its numbers, where each byte of its memory goes, what they rest on."""

from typing import Any

from hfcompress.devices import HERE, NUMBERS, Device, decode_ms, first_token_ms, fits, resident_bytes
from hfcompress.language_shape import LanguageShape

UNITS = {"memory_bandwidth": "GB/s", "usable_memory": "GB", "sustained": "of the bandwidth", "compute": "GFLOP/s"}


def bytes_on(shape: LanguageShape, on: Device, context: int) -> dict[str, float]:
    """Resident bytes by what they hold; on this machine the model is served from Python, elsewhere without it."""
    return resident_bytes(shape, context, interpreter=on.name == HERE)


def prediction(shape: LanguageShape, on: Device, context: int) -> dict[str, Any]:
    """parameters, disk_mb, ram_mb, latency_ms (a token), first_token_ms; no ratio: nothing to count it from."""
    resident = bytes_on(shape, on, context)
    return {
        "parameters": shape.parameters,
        "disk_mb": (resident["weights"] + resident["embedding"]) / 1e6,
        "ram_mb": sum(resident.values()) / 1e6,
        "latency_ms": decode_ms(shape, on, context),
        "latency_ratio": None,
        "first_token_ms": first_token_ms(shape, on, context),
    }


def memory(shape: LanguageShape, on: Device, context: int) -> dict[str, Any]:
    """What of a model is resident on a device, in bytes, and whether that may be."""
    resident = bytes_on(shape, on, context)
    return {
        "device": on.name,
        "context": context,
        "bytes": {name: round(value) for name, value in resident.items() if value},
        "sum": round(sum(resident.values())),
        "usable": round(on.usable_memory * 1e9),
        "fits": fits(shape, on, context),
        "numbers": {name: getattr(on, name) for name in NUMBERS},
        "sources": on.sources,
        "estimated": list(on.estimated),
    }


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """`memory` of the model of that name as text."""
    answer = "fits" if found["fits"] else "DOES NOT FIT"
    rows = [f"Resident memory of {name} on {found['device']} at {found['context']:,} tokens, MB:"]
    rows += [f"  {part.replace('_', ' '):14} {value / 1e6:>9,.1f}" for part, value in found["bytes"].items()]
    rows.append(f"  {'sum':14} {found['sum'] / 1e6:>9,.1f} of {found['usable'] / 1e6:,.0f} usable: {answer}")
    rows.append(f"{found['device']} (* estimated):")
    for number, value in found["numbers"].items():
        star = "*" if number in found["estimated"] else " "
        unit, source = UNITS[number], found["sources"][number]
        rows.append(f" {star}{number.replace('_', ' '):16} {value:>8.4g} {unit:16} {source}")
    return rows
