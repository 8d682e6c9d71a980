"""Which processors need weights in 7 bits."""

from pathlib import Path

import pytest

from slim.deploy import processor

CASES = [
    ("flags\t\t: fpu avx avx2 fma\n", True),
    ("flags\t\t: fpu avx avx2 avx512f avx512_vnni\n", False),
    ("flags\t\t: avx2 avx_vnni\n", False),
    ("Features\t: fp asimd asimddp\n", False),  # ARM, whose sums are 32 bits wide
    ("", False),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_sums_of_products_saturate_without_vnni(
    text: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{text}")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor.saturates() is expected


def test_nothing_is_known_of_other_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "missing")
    assert processor.instructions() == [] and not processor.saturates()
