"""The outcome of a preflight as text and as JSON."""

import json

from lmms.findings import Finding
from lmms.machine import DeviceState
from lmms.memory import COMPONENTS, MemoryEstimate
from lmms.preflight_table import PREFLIGHT, Outcome, read_table

ESTIMATE = MemoryEstimate(2**30, 2**29, 2**31, 0, 0, 0)


def _outcome(verdict="WARN"):
    return Outcome(
        stage=2,
        world_size=4,
        precision="bf16",
        parts={"projector": (10, 0)},
        estimates={0: ESTIMATE, 2: ESTIMATE},
        devices=[DeviceState("main memory", 1, 2, 1, {7: 1})],
        findings=[Finding("memory", verdict, "tight"), Finding("disk", "PASS", "enough")],
        advice=["weights: a smaller model"],
    )


def test_the_table_is_read_back_with_the_chosen_stage(tmp_path):
    path = tmp_path / "new" / PREFLIGHT
    outcome = _outcome()
    outcome.write(path)
    assert read_table(path) == outcome.table()
    table = outcome.table()
    assert table.columns == ("component", "ZeRO 0", "ZeRO 2 (chosen)")
    assert [row[0] for row in table.rows] == [*COMPONENTS, "total"]
    assert table.rows[-1] == ("total", 3.5, 3.5)
    values = json.loads(path.read_text())
    assert (values["verdict"], values["parts"]) == ("WARN", {"projector": {"parameters": 10, "trained": 0}})
    assert values["devices"][0]["processes"] == {"7": 1}
    assert values["bytes_per_rank"]["2"]["optimizer"] == 2**31


def test_advice_stands_where_there_is_something_to_mend():
    lines = _outcome().lines()
    assert lines[0] == "WARN  memory: tight"
    assert "  weights: a smaller model" in lines
    assert lines[-1] == "verdict: WARN"
    assert len(_outcome("PASS").lines()) == 3
