"""The outcome of a preflight as text, as JSON, and read back for the report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from region_training.run_folder import write_atomically
from region_training.tables import Table

from lmms.findings import Finding, Verdict, worst
from lmms.machine import DeviceState
from lmms.memory import COMPONENTS, MemoryEstimate

PREFLIGHT = "preflight.json"

_GIB = 2**30


@dataclass(frozen=True)
class Outcome:
    """What a preflight found.

    Attributes:
        stage: The ZeRO stage that is asked for.
        world_size: Ranks.
        precision: "bf16" or "fp32".
        parts: Part -> its parameters and how many are trained; empty where the model is not known.
        estimates: ZeRO stage -> bytes of one rank; empty where the model is not known.
        devices: What was found on the devices.
        findings: One per thing looked at.
        advice: Settings to change, the most helpful first.
    """

    stage: int
    world_size: int
    precision: str
    parts: Mapping[str, tuple[int, int]]
    estimates: Mapping[int, MemoryEstimate]
    devices: Sequence[DeviceState]
    findings: Sequence[Finding]
    advice: Sequence[str]

    @property
    def verdict(self) -> Verdict:
        """The worst one."""
        return worst(self.findings)

    def table(self) -> Table:
        """GiB per rank by component and ZeRO stage."""
        return _table({stage: estimate.as_plain() for stage, estimate in self.estimates.items()}, self.stage)

    def lines(self) -> list[str]:
        """The findings, the advice where there is something to mend, and the verdict."""
        lines = [f"{finding.verdict}  {finding.name}: {finding.text}" for finding in self.findings]
        if self.verdict != "PASS" and self.advice:
            lines += ["for less memory, the largest part first:", *(f"  {advice}" for advice in self.advice)]
        return [*lines, f"verdict: {self.verdict}"]

    def write(self, path: Path) -> None:
        """Write it as JSON; sizes in bytes."""
        values = {
            "verdict": self.verdict,
            "zero_stage": self.stage,
            "world_size": self.world_size,
            "precision": self.precision,
            "parts": {name: {"parameters": count, "trained": trained} for name, (count, trained) in self.parts.items()},
            "bytes_per_rank": {str(stage): estimate.as_plain() for stage, estimate in self.estimates.items()},
            "devices": [asdict(device) for device in self.devices],
            "findings": [asdict(finding) for finding in self.findings],
            "advice": list(self.advice),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(values, indent=2) + "\n")


def read_table(path: Path) -> Table:
    """The table of an outcome that `Outcome.write` kept."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return _table(values["bytes_per_rank"], values["zero_stage"])


def _table(estimates: Mapping[int, Mapping[str, int]] | Mapping[str, Mapping[str, int]], stage: int) -> Table:
    columns = tuple(f"ZeRO {at}" + (" (chosen)" if str(at) == str(stage) else "") for at in estimates)
    rows = tuple((name, *(estimate[name] / _GIB for estimate in estimates.values())) for name in (*COMPONENTS, "total"))
    return Table("GiB per rank", ("component", *columns), rows)
