"""What Arm's compiler ``vela`` makes of a ``.tflite`` file for an Ethos-U NPU.

See https://gitlab.arm.com/artificial-intelligence/ethos-u/ethos-u-vela. Cycles and speed are its estimates for the
system that it takes by default, not measurements.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lq.export.artifact.scratch import scratch
from lq.messages import some_of

NPUS = (
    *(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
    *(f"ethos-u65-{macs}" for macs in (256, 512)),
    *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
)


@dataclass(frozen=True)
class Estimate:
    """What a network costs on an NPU.

    Args:
        npu: which one, and the system around it.
        operators: number of them after compilation.
        on_cpu: names of those that stay on the processor beside the NPU.
        cycles: of the NPU for one inference.
        per_second: inferences.
        sram_kib: memory for activations, in KiB.
        flash_kib: memory that is read only, or beyond the chip, in KiB.

    Example:
        >>> print(Estimate("ethos-u55-128 (internal default)", 4, ("argmax",), 1250, 8e5, 3.5, 12.0))
        ethos-u55-128 (internal default): 75% of 4 operators on the NPU (on the CPU: argmax), 1,250 cycles, 800,000
        inferences a second, 3.5 KiB of SRAM, 12.0 KiB of other memory
    """

    npu: str
    operators: int
    on_cpu: tuple[str, ...]
    cycles: int
    per_second: float
    sram_kib: float
    flash_kib: float

    def __str__(self) -> str:
        share = 1 - len(self.on_cpu) / self.operators if self.operators else 0.0
        cpu = f" (on the CPU: {some_of(self.on_cpu)})" if self.on_cpu else ""
        return (
            f"{self.npu}: {share:.0%} of {self.operators} operators on the NPU{cpu}, {self.cycles:,} cycles, "
            f"{self.per_second:,.0f} inferences a second, {self.sram_kib:,.1f} KiB of SRAM, "
            f"{self.flash_kib:,.1f} KiB of other memory"
        )


def check_npu(npu: str) -> None:
    """Look whether vela knows an NPU.

    Raises:
        ValueError: naming those that it knows.

    Example:
        >>> check_npu("ethos-u55-100")
        Traceback (most recent call last):
        ...
        ValueError: npu='ethos-u55-100' must be one of ethos-u55-32, ethos-u55-64, ...
    """
    if npu not in NPUS:
        raise ValueError(f"npu={npu!r} must be one of {', '.join(NPUS)}.")


def estimate(path: Path, npu: str = "ethos-u55-128") -> Estimate:
    """Compile a file for an NPU and read what vela says of it.

    Args:
        path: a ``.tflite`` file.
        npu: of :data:`NPUS`; the number is that of multiply-accumulates in a cycle.

    Raises:
        ValueError: on an NPU that vela does not know.
        ImportError: if vela is not installed.
        RuntimeError: if it cannot compile the file, with what it says.

    Example:
        >>> import tempfile, torch
        >>> from lq.export.formats import mcu
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.tensor([[-1.0, 0.5, 1.0]])
        >>> prepared = prepare_static(torch.nn.Sequential(torch.nn.Linear(3, 4)), [x], "mcu")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     info = mcu.export(prepared, ((x,), {}), Path(folder))
        ...     figures = estimate(Path(folder) / mcu.FILE, "ethos-u55-32")
        >>> figures.operators, figures.on_cpu, figures.cycles > 0
        (1, (), True)
    """
    check_npu(npu)
    if importlib.util.find_spec("ethosu") is None:
        raise ImportError("what an Ethos-U makes of it needs vela, not installed here: pip install ethos-u-vela")
    with scratch() as place:
        command = [sys.executable, "-m", "ethosu.vela", str(path), "--output-dir", str(place)]
        command += ["--accelerator-config", npu, "--show-cpu-operations"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        summaries = list(place.glob("*_summary_*.csv"))
        if done.returncode or not summaries:
            raise RuntimeError(f"vela cannot compile {path.name}: {' '.join(done.stderr.split())[-300:]}")
        with summaries[0].open(encoding="utf-8", newline="") as file:
            figures = next(csv.DictReader(file))
    return _estimate(npu, figures, done.stdout)


def _estimate(npu: str, figures: dict[str, str], said: str) -> Estimate:
    counts = [int(n) for n in re.findall(r"^[CN]PU operators = (\d+)", said, re.MULTILINE)]
    others = ("dram", "on_chip_flash", "off_chip_flash")
    return Estimate(
        npu=f"{npu} ({figures['system_config']})",
        operators=sum(counts),
        on_cpu=tuple(re.findall(r"^\s*CPU: \S+ = (\S+)", said, re.MULTILINE)),
        cycles=round(float(figures["cycles_total"])),
        per_second=float(figures["inferences_per_second"]),
        sram_kib=float(figures["sram_memory_used"]),
        flash_kib=sum(float(figures[f"{kind}_memory_used"]) for kind in others),
    )
