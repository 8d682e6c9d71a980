"""How much memory there is, with made-up limits of a container."""

from pathlib import Path

import pytest

from slim import memory

V1 = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "1000", "memory.current": "300", "memory.stat": "anon 9\ninactive_file 50"}, 750),
        ({"memory.max": "1000", "memory.current": "3000", "memory.stat": "inactive_file 50"}, 0),
        ({V1[0]: "1000", V1[1]: "300", "memory/memory.stat": "total_inactive_file 7"}, 707),
        ({"memory.max": "max", "memory.current": "300", "memory.stat": "inactive_file 50"}, None),
        ({}, None),
    ],
)
def test_a_container_may_have_less_than_the_machine(
    files: dict[str, str], expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_free_here", lambda: 5e9)
    assert memory.free_memory() == (5e9 if expected is None else expected)
