"""The findings of ``lq doctor`` as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lq.console import wide_enough


def print_findings(findings: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what :func:`lq.cli.doctor.examine` found.

    Args:
        findings: plain data.
        console: where to.

    Example:
        >>> import io
        >>> from lq.cli.doctor import examine
        >>> console = Console(file=io.StringIO(), width=110, force_terminal=False)
        >>> print_findings(examine(quick=True), console)
        >>> lines = [line.strip() for line in console.file.getvalue().splitlines()]
        >>> [line for line in lines if line in ("machine", "packages", "presets", "exporters")]
        ['machine', 'packages', 'presets', 'exporters']
    """
    console = wide_enough(console, 110)
    console.print(_machine(findings))
    console.print(_packages(findings["versions"]))
    console.print(_presets(findings["presets"]))
    console.print(_exporters(findings["exporters"]))
    for line in advice(findings):
        console.print(Text(f" {line}"))


def advice(findings: Mapping[str, Any]) -> list[str]:
    """What to do about what does not work.

    Example:
        >>> rows = [{"name": "onnx", "works": False, "install": "pip install 'lightning-qat[onnx]'"}]
        >>> tools, kernels = {"C++ compiler": "/usr/bin/g++"}, {"works": True, "about": "compiled by cc"}
        >>> advice({"exporters": rows, "versions": {"torchao": "0.18"}, "tools": tools, "kernels": kernels})
        ["onnx: pip install 'lightning-qat[onnx]'"]
    """
    lines = [f"{row['name']}: {row['install']}" for row in findings["exporters"] if "install" in row]
    if findings["versions"].get("torchao") is None:
        lines.append("pt2: runs in float; pip install 'lightning-qat[pt2]' lets inductor turn it into int8 kernels")
    if findings["tools"]["C++ compiler"] is None:
        lines.append("pt2: inductor needs a C++ compiler to turn it into int8 kernels, such as g++")
    if not findings["kernels"]["works"]:
        lines.append(
            f"training on the CPU takes PyTorch's own operations, which are slower: {findings['kernels']['about']}"
        )
    return lines


def _machine(findings: Mapping[str, Any]) -> Table:
    table, cpu = _table("\nmachine", "", ""), findings["cpu"]
    features = ", ".join(f"{name} {_yes(has)}" for name, has in cpu["features"].items())
    for name, value in (
        ("system", findings["versions"]["system"]),
        ("CPU", f"{cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads used"),
        ("instructions", features),
        ("engines", ", ".join(findings["engines"]) or "none"),
        ("GPUs", ", ".join(findings["gpus"]) or "none"),
        ("C++ compiler", findings["tools"]["C++ compiler"] or "none"),
        ("CPU kernels for training", findings["kernels"]["about"]),
    ):
        table.add_row(name, Text(value))
    return table


def _packages(versions: Mapping[str, str | None]) -> Table:
    table = _table("packages", "", "")
    present = [f"{name} {version}" for name, version in versions.items() if version and name != "system"]
    table.add_row("installed", Text(", ".join(present)))
    table.add_row("not installed", Text(", ".join(name for name, version in versions.items() if not version) or "-"))
    return table


def _presets(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("presets", "preset", "works", "engine", "SQNR dB", "what it is, or what is wrong")
    for row in rows:
        about = row.get("error") or (row["for"] if row["works"] is not False else _saturates(row["for"]))
        table.add_row(row["name"], _yes(row["works"]), row["engine"], str(row.get("sqnr_db", "-")), Text(about))
    return table


def _saturates(about: str) -> str:
    return f"gives wrong results on this CPU, as its kernels saturate without VNNI; {about}"


def _exporters(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("exporters", "exporter", "works", "SQNR dB", "packages, or what is wrong")
    for row in rows:
        packages = ", ".join(f"{name} {version or 'missing'}" for name, version in row["packages"].items())
        about = row.get("error") or packages or "PyTorch alone"
        table.add_row(row["name"], _yes(row["works"]), str(row.get("sqnr_db", "-")), Text(about))
    return table


def _table(title: str, *headers: str) -> Table:
    table = Table(
        *headers, title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        show_header=any(headers),
    )  # fmt: skip
    table.columns[0].style = "cyan"
    return table


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "?"}[value]
