"""`lmms preflight`, and the look before training."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from lmms.config import DataSettings, PreflightSettings, Settings, SyntheticSettings
from lmms.machine import DeviceState
from lmms.preflight import check_before_training, preflight
from lmms.preflight_table import PREFLIGHT
from region_training.ranks import Ranks
from region_training.settings import TrainingSettings

GIB = 2**30


class OneRank(Ranks):
    """A process alone, without a process group."""

    def __init__(self):
        self.rank, self.world_size = 0, 1


@pytest.fixture
def settings(toy, tmp_path):
    """Of a run whose world is not written yet."""
    data = DataSettings(root=str(tmp_path / "none"), synthetic=SyntheticSettings(), max_length=128, max_frames=4)
    training = TrainingSettings(device="cpu", micro_batch_size=1, frozen_parts=["vision_tower"])
    return Settings(run_dir=str(tmp_path / "run"), model=toy.settings(), data=data, training=training)


@pytest.fixture
def free(monkeypatch):
    """Bytes of main memory that are found free, one value per look; the last one stays."""
    values = [64 * GIB]

    def look(num_ranks):
        value = values.pop(0) if len(values) > 1 else values[0]
        return DeviceState("main memory", value, 64 * GIB, 64 * GIB - value, {})

    monkeypatch.setattr("lmms.preflight.main_memory", look)
    monkeypatch.setattr("lmms.preflight.POLL_S", 0.01)
    return values


def _needed(settings, capsys):
    assert preflight(settings) == 0
    capsys.readouterr()
    values = json.loads(Path(f"{settings.run_dir}.{PREFLIGHT}").read_text())
    return values["bytes_per_rank"]["2"]["total"]


@pytest.mark.parametrize(("room", "code", "verdict"), [(2.0, 0, "PASS"), (1.1, 1, "WARN"), (0.9, 2, "FAIL")])
def test_the_exit_code_is_the_verdict(settings, free, capsys, room, code, verdict):
    free[:] = [int(room * _needed(settings, capsys))]
    assert preflight(settings) == code
    shown = capsys.readouterr().out
    assert f"verdict: {verdict}\n" in shown
    assert "ZeRO 2 (chosen)" in shown
    assert ("for less memory" in shown) == (code > 0)


def test_the_file_stands_beside_a_run_that_has_not_begun(settings, free, tmp_path, capsys):
    """In the folder it would keep the run from beginning there."""
    assert preflight(settings) == 0
    assert not (tmp_path / "run").exists()
    beside = tmp_path / f"run.{PREFLIGHT}"
    assert f"written: {beside}\n" in capsys.readouterr().out
    values = json.loads(beside.read_text())
    assert values["verdict"] == "PASS"
    assert values["parts"]["vision_tower"]["trained"] == 0
    assert {finding["name"] for finding in values["findings"]} == {
        "decoder",
        "records",
        "held-out records",
        "memory",
        "disk",
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    assert preflight(settings) == 0
    assert (tmp_path / "run" / PREFLIGHT).is_file()


def test_it_waits_until_others_give_memory_back(settings, free, tmp_path, capsys):
    free[:] = [0, 0, 64 * GIB]
    assert preflight(settings) == 2
    free[:] = [0, 0, 64 * GIB]
    assert preflight(replace(settings, preflight=PreflightSettings(wait_s=60.0))) == 0
    free[:] = [0]
    assert preflight(replace(settings, preflight=PreflightSettings(wait_s=0.05))) == 2


def test_training_is_refused_where_it_cannot_fit(settings, free, toy, tmp_path, caplog):
    free[:] = [1000]
    with pytest.raises(ValueError, match=r"preflight: main memory: about .* needed.*For less memory: .*check: false"):
        check_before_training(settings, toy.processor, OneRank())
    assert json.loads((tmp_path / "run" / PREFLIGHT).read_text())["verdict"] == "FAIL"
    assert "verdict: FAIL" in caplog.text
    free[:] = [1000, 64 * GIB]
    with caplog.at_level(logging.INFO):
        waiting = replace(settings, preflight=PreflightSettings(wait_s=60.0))
        check_before_training(waiting, toy.processor, OneRank())
    assert "verdict: PASS" in caplog.text


def test_the_look_can_be_left_out(settings, free, toy, tmp_path):
    free[:] = [0]
    check_before_training(replace(settings, preflight=PreflightSettings(check=False)), toy.processor, OneRank())
    assert not (tmp_path / "run").exists()


def test_what_rank_0_could_not_do_is_every_ranks_error(settings, free, toy):
    unknown = replace(settings, training=replace(settings.training, frozen_parts=["head"]))
    with pytest.raises(ValueError, match="frozen_parts"):
        check_before_training(unknown, toy.processor, OneRank())
