"""What the processor at hand can do."""

from pathlib import Path

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "asimddp", "sve")
CPUINFO = Path("/proc/cpuinfo")


def instructions() -> list[str]:
    """Return which of the instruction sets that matter here it has; an empty list where that isn't known."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())
    return [name for name in INSTRUCTIONS if name in flags]


def saturates() -> bool:
    """Say whether sums of 8-bit products saturate: on x86 without VNNI, where onnxruntime adds pairs in 16 bits."""
    found = instructions()
    return "avx2" in found and not {"avx512_vnni", "avx_vnni"} & {*found}
