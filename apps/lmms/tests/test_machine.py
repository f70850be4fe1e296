"""What is free on the machine."""

import psutil
import torch
from lmms.machine import free_disk, gpu_memory, gpu_processes, main_memory


def test_main_memory_is_shared_by_the_ranks():
    alone, shared = main_memory(1), main_memory(4)
    total = psutil.virtual_memory().total
    assert alone.total == total
    assert shared.total == total // 4
    assert 0 < alone.free < total
    assert 0 < alone.others < total


def test_disk_is_that_of_the_folder_that_will_be(tmp_path):
    assert free_disk(tmp_path / "not" / "yet") > 0


def test_processes_on_a_device_are_those_of_its_uuid(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU-aaa, 12, 300'\necho 'GPU-bbb, 13, 400'\necho 'GPU-aaa, 14, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpu_processes("aaa") == {12: 300 * 2**20}
    assert gpu_processes("GPU-bbb") == {13: 400 * 2**20}
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_processes("aaa") == {}
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_processes("aaa") == {}


def test_what_this_process_holds_on_a_device_counts_as_free(monkeypatch):
    class Properties:
        name, uuid = "Chip", "aaa"

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (700, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties())
    monkeypatch.setattr("lmms.machine.gpu_processes", lambda uuid: {1: 200})
    state = gpu_memory(0)
    assert (state.name, state.free, state.total, state.others) == ("cuda:0 Chip", 800, 1000, 200)
    assert state.processes == {1: 200}
