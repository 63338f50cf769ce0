"""What the CPU is, as the system tells it."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from lq.timing import cpu


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_features_are_those_that_the_kernel_lists() -> None:
    listed = Path("/proc/cpuinfo").read_text()
    found = cpu.cpu_features()
    if platform.machine() == "x86_64":
        assert found["AVX-512 VNNI"] == ("avx512_vnni" in listed)
        assert found["AMX int8"] == ("amx_int8" in listed)
    assert cpu.cpu_name() in listed or "model name" not in listed


def test_arm_has_other_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(cpu, "_cpuinfo", lambda field: "fp asimd asimddp" if field == "Features" else "")
    assert cpu.cpu_features() == {"NEON dot product": True, "int8 matrix product": False}


def test_a_system_that_does_not_say_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_cpuinfo", lambda field: "")
    monkeypatch.setattr(cpu.platform, "system", lambda: "Windows")
    assert set(cpu.cpu_features().values()) == {None}
