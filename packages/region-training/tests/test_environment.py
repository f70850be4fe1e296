import getpass
import json
import platform
import socket

from region_training.environment import collect_environment, describe_environment


def test_the_environment_has_versions_devices_and_memory():
    collected = collect_environment(command=["train", "--hub_token", "hf_canary"])
    environment = json.loads(json.dumps(collected))
    assert environment == collected
    assert environment["command"][1:] == ["train", "--hub_token", "***"]
    assert environment["python"] == platform.python_version()
    assert {"torch", "transformers", "region-training"} <= set(environment["versions"])
    assert environment["cpu"]["cores"] >= 1
    assert environment["disk_free_gib"] > 0
    assert isinstance(environment["accelerators"], list)
    assert set(environment["git"]) in (set(), {"revision", "changed"})


def test_nothing_personal_is_in_it(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("WORLD_SIZE", "4")
    text = json.dumps(collect_environment(command=[]))
    assert "hf_canary" not in text
    assert '"WORLD_SIZE": "4"' in text
    assert f'"{socket.gethostname()}"' not in text
    assert f'"{getpass.getuser()}"' not in text


def test_a_machine_without_tools_is_described_too(monkeypatch):
    monkeypatch.setenv("PATH", "")
    environment = collect_environment(command=[])
    assert (environment["ffmpeg"], environment["compiler"], environment["git"]) == (None, None, {})


def test_it_reads_as_lines():
    text = describe_environment({"a": 1, "b": {"c": None, "d": []}, "gpus": [{"name": "x"}], "e": ["f", "g"], "h": {}})
    assert text == "a: 1\nb:\n  c: none\n  d: none\ngpus 0:\n  name: x\ne: f g\nh: none\n"
