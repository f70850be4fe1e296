import json

import pytest
from region_training.bad_records import BadRecordPolicy
from region_training.safe_dataset import BadRecordError, SafeDataset, TooManyBadRecordsError, count_bad_records
from region_training.settings import ConfigError
from torch.utils.data import DataLoader, Dataset


class Numbers(Dataset):
    """`length` numbers, some of which cannot be read."""

    def __init__(self, length, bad=(), error=ValueError):
        self.length, self.bad, self.error, self.epoch = length, frozenset(bad), error, 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.bad:
            raise self.error(f"depth map {index} is damaged")
        return index + 1000 * self.epoch

    def set_epoch(self, epoch):
        self.epoch = epoch


def skipping(tmp_path, dataset, fraction=0.5):
    path = tmp_path / "bad_records.jsonl"
    return SafeDataset(dataset, BadRecordPolicy("skip", fraction), counted_in=path, name_of=lambda index: f"r{index}")


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_by_default_a_bad_record_stops_and_is_named(error):  # T17
    data = SafeDataset(Numbers(4, [2], error), BadRecordPolicy(), name_of=lambda index: f"train.json record {index}")
    assert [data[0], data[1], data[3]] == [0, 1, 3]
    with pytest.raises(ValueError, match=r"record train\.json record 2: depth map 2 is damaged"):
        data[2]


def test_a_message_that_names_its_record_is_left_alone():
    class Named(Numbers):
        def __getitem__(self, index):
            raise ValueError(f"train.json record {index}, key 'image': no such file")

    data = SafeDataset(Named(4), BadRecordPolicy(), name_of=lambda index: f"train.json record {index}")
    with pytest.raises(BadRecordError) as caught:
        data[2]
    assert str(caught.value) == "train.json record 2, key 'image': no such file"


def test_the_message_is_the_same_from_a_loading_process():
    data = SafeDataset(Numbers(4, [2]), BadRecordPolicy())
    with pytest.raises(BadRecordError) as caught:
        list(DataLoader(data, num_workers=1))
    assert str(caught.value) == "record 2: depth map 2 is damaged"


def test_skip_puts_the_next_readable_record_in_its_place(tmp_path):  # T17
    data = skipping(tmp_path, Numbers(6, [2, 3, 5]))
    assert len(data) == 6
    assert [data[index] for index in range(6)] == [0, 1, 4, 4, 4, 0]
    assert [data[index] for index in range(6)] == [0, 1, 4, 4, 4, 0]
    lines = [json.loads(line) for line in (tmp_path / "bad_records.jsonl").read_text().splitlines()]
    assert lines == [
        {"index": index, "record": f"r{index}", "reason": f"ValueError: depth map {index} is damaged"}
        for index in (2, 3, 5)
    ]


def test_too_many_bad_records_stop_the_run(tmp_path):
    data = skipping(tmp_path, Numbers(100, [3, 50]), 0.01)
    assert data[3] == 4
    with pytest.raises(
        TooManyBadRecordsError, match=r"2 of 100 records cannot be read, expected at most 1 .*record r50"
    ):
        data[50]
    assert count_bad_records(tmp_path / "bad_records.jsonl") == 2


def test_no_readable_record_at_all_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="none of the 3 records can be read"):
        skipping(tmp_path, Numbers(3, range(3)), 1.0)[1]


def test_workers_count_together_and_give_the_same_data(tmp_path):
    bad = [1, 2, 7, 21, 39]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    batches = [
        [batch.tolist() for _ in range(2) for batch in DataLoader(data, batch_size=4, num_workers=workers)]
        for data, workers in (
            (skipping(tmp_path / "a", Numbers(40, bad)), 0),
            (skipping(tmp_path / "b", Numbers(40, bad)), 2),
        )
    ]
    assert batches[0] == batches[1]
    assert [len(batch) for batch in batches[0]] == [4] * 20
    assert count_bad_records(tmp_path / "a" / "bad_records.jsonl") == len(bad)
    assert count_bad_records(tmp_path / "b" / "bad_records.jsonl") == len(bad)


def test_workers_stop_together(tmp_path):
    # Two workers hold a copy each and know of one another through the file alone.
    first, second = (skipping(tmp_path, Numbers(40, [1, 10, 20, 30]), 0.05) for _ in range(2))
    assert [first[1], second[10], second[1]] == [2, 11, 2]
    with pytest.raises(TooManyBadRecordsError, match="3 of 40 records cannot be read"):
        first[20]


def test_a_resumed_run_counts_on(tmp_path):
    first = skipping(tmp_path, Numbers(100, [3, 4, 50]), 0.02)
    assert [first[3], first[4]] == [5, 5]
    resumed = skipping(tmp_path, Numbers(100, [3, 4, 50]), 0.02)
    assert resumed[3] == 5
    with pytest.raises(TooManyBadRecordsError, match="3 of 100"):
        resumed[50]


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_faults_of_the_code_are_not_bad_records(tmp_path, policy):
    data = SafeDataset(Numbers(4, [2], KeyError), BadRecordPolicy(policy), counted_in=tmp_path / "bad.jsonl")
    with pytest.raises(KeyError) as caught:
        data[2]
    assert caught.value.__notes__ == ["while reading record 2"]
    assert not (tmp_path / "bad.jsonl").exists()


def test_indices_epochs_and_settings(tmp_path):
    data = skipping(tmp_path, Numbers(3, [0]))
    assert list(data) == [1, 1, 2]
    assert data[-1] == 2
    with pytest.raises(IndexError, match="got index 3, expected one of 3 records"):
        data[3]
    data.set_epoch(2)
    assert data[1] == 2001
    SafeDataset([1, 2], BadRecordPolicy()).set_epoch(1)
    with pytest.raises(ValueError, match="counted_in is None"):
        SafeDataset(Numbers(3), BadRecordPolicy("skip"))
    with pytest.raises(Exception, match="'ignore'"):  # from the type checker under pytest, a ConfigError elsewhere
        BadRecordPolicy(json.loads('"ignore"'))
    with pytest.raises(ConfigError, match=r"max_bad_fraction is 1\.5, expected 0 to 1"):
        BadRecordPolicy("skip", 1.5)
