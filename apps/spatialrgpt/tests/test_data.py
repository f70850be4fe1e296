"""Records on disk: every form that is read, and one clear error for everything that can't be."""

import json

import numpy as np
import pytest
import torch
from region_core.rle import encode_rle
from region_heads.labels import Label
from region_heads.tasks import UNKNOWN_TASK, TaskType
from region_training.bad_records import BadRecordPolicy
from region_training.images import write_png
from region_training.safe_dataset import SafeDataset, TooManyBadRecordsError, count_bad_records
from spatialrgpt.data import RegionDataset, read_texts

HEIGHT, WIDTH = 24, 32
BOX = [4, 6, 20, 18]


def rectangle(left: int = 4, top: int = 6, right: int = 20, bottom: int = 18) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def record(**changes: object) -> dict[str, object]:
    """A good record with one region; None takes a key away."""
    fields = {
        "id": "one",
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "How many pallets are in <mask>?"},
            {"from": "gpt", "value": "There is 1 pallet."},
        ],
        "rle": [encode_rle(rectangle())],
        "category": "count",
        "normalized_answer": 1,
    } | changes
    return {key: value for key, value in fields.items() if value is not None}


def asking(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": value} for speaker, value in turns]


def test_a_record_becomes_a_sample(write_split):
    dataset = write_split(record())
    sample = dataset[0]
    assert len(dataset) == 1
    assert (sample.index, sample.record_id) == (0, "one")
    assert sample.images.shape == (1, 3, 32, 32)
    assert sample.depths.shape == (1, 3, 32, 32)
    assert sample.depth_images.tolist() == [0]
    assert sample.region_masks.shape == (1, 8, 8)
    assert sample.region_masks[0].mean().item() == pytest.approx(16 * 12 / (24 * 32))
    assert sample.region_images.tolist() == [0]
    assert sample.region_geometry.shape == (1, 8)
    assert (sample.task_type, sample.label) == (TaskType.COUNTING, Label(TaskType.COUNTING, 1))


@pytest.mark.parametrize(
    "regions",
    [
        {"rle": [encode_rle(rectangle())]},
        {"rle": [encode_rle(rectangle(), compressed=False)]},
        {"bbox": [BOX]},
        {"regions": [{"box": [0.125, 0.25, 0.625, 0.75]}]},
        {"regions": [{"box": BOX, "units": "pixels"}]},
        {"regions": [{"rle": encode_rle(rectangle())}]},
        {"regions": [{"polygon": [4, 6, 20, 6, 20, 18, 4, 18], "units": "pixels"}]},
    ],
    ids=lambda regions: f"{next(iter(regions))}",
)
def test_every_form_of_a_region_gives_the_same_mask(write_split, regions):
    dataset = write_split(record(), record(rle=None, **regions) if "rle" not in regions else record(**regions))
    torch.testing.assert_close(dataset[1].region_masks, dataset[0].region_masks)
    torch.testing.assert_close(dataset[1].region_geometry, dataset[0].region_geometry)


def test_a_split_without_a_folder_of_depths_has_none(write_split):
    sample = write_split(record(), depths=())[0]
    assert sample.depths.shape == (0, 3, 32, 32)
    assert sample.depth_images.tolist() == []


def test_a_record_without_regions_has_no_masks(write_split):
    sample = write_split(record(rle=None, conversations=asking(("human", "What is here?"), ("gpt", "Pallets."))))[0]
    assert sample.region_masks.shape == (0, 8, 8)
    assert sample.region_geometry.shape == (0, 8)
    assert len(sample.images) == len(sample.depths) == 1


@pytest.mark.parametrize("image", [None, []])
def test_a_record_without_an_image_is_text_alone(write_split, image):
    sample = write_split(record(image=image, rle=None, conversations=asking(("human", "Hi"), ("gpt", "Hello"))))[0]
    assert sample.images.shape == sample.depths.shape == (0, 3, 32, 32)
    assert len(sample.region_masks) == 0


def test_several_images_keep_their_regions_in_order_of_mention(write_split):
    boxes = [[0, 0, 8, 6], [8, 6, 24, 18], [0, 12, 32, 24]]
    dataset = write_split(
        record(
            image=["a.png", "b.png"],
            rle=None,
            bbox=boxes,
            region_images=[1, 0, 1],
            conversations=asking(("human", "<mask> <mask> <mask>?"), ("gpt", "Yes")),
        )
    )
    sample = dataset[0]
    assert sample.region_images.tolist() == [1, 0, 1]
    assert sample.depth_images.tolist() == [0, 1]
    areas = [(x1 - x0) * (y1 - y0) / (HEIGHT * WIDTH) for x0, y0, x1, y1 in boxes]
    torch.testing.assert_close(sample.region_masks.mean((1, 2)), torch.tensor(areas))
    frames = dataset.frames(0)
    for position, (image, (x0, y0, x1, y1)) in enumerate(zip((1, 0, 1), boxes, strict=True)):
        depth = frames[image].depth[y0:y1, x0:x1].mean()  # each region is measured in the depth of its own image
        assert sample.region_geometry[position, 5].item() == pytest.approx(depth, abs=0.02)


def test_a_question_of_no_known_kind_has_no_typed_answer(write_split):
    dataset = write_split(record(category=None, conversations=asking(("human", "Describe <mask>."), ("gpt", "Big."))))
    assert dataset.task_types == [UNKNOWN_TASK]
    assert dataset[0].label is None


def test_the_sentence_tells_which_regions_an_answer_is_about(write_split):
    sentence = "There is 1 pallet in the buffer [Region 0]: pallet [Region 1]."
    dataset = write_split(
        record(
            rle=[encode_rle(rectangle()), encode_rle(rectangle(left=10))],
            conversations=asking(("human", "How many are in <mask> of <mask>?"), ("gpt", sentence)),
            freeform_answer=sentence,
        )
    )
    assert dataset[0].label == Label(TaskType.COUNTING, 1, frozenset({1}))


def test_without_answers_a_sample_is_the_prompt(write_split):
    answered, prompt = write_split(record())[0], write_split(record(), with_answers=False)[0]
    length = len(prompt.text.input_ids)
    assert length == prompt.text.question_position + 1 == answered.text.question_position + 1
    assert torch.equal(answered.text.input_ids[:length], prompt.text.input_ids)
    assert prompt.label == answered.label


def test_tasks_labels_and_questions_are_known_without_opening_a_picture(write_split):
    dataset = write_split(record(image="missing.png"), record(category="mcq", normalized_answer="Region 0"))
    assert dataset.task_types == [TaskType.COUNTING, TaskType.MULTIPLE_CHOICE]
    assert [label.value for label in dataset.labels] == [1, 0]
    assert dataset.question(0) == "How many pallets are in <mask>?"


def test_the_records_of_the_world_can_be_read(dataset):
    for index in range(0, len(dataset), 5):
        sample = dataset[index]
        assert sample.label is not None
        assert sample.task_type == dataset.task_types[index]
        assert dataset.labels[index] == sample.label


BAD = {
    "missing image": ({"image": "no.png"}, r"key 'image': .*No such file.*no\.png"),
    "image of another type": ({"image": 7}, r"key 'image': expected a file name or a list of them, got 7"),
    "path out of the root": ({"image": "../../x.png"}, r"key 'image': .*leads out of"),
    "absolute path": ({"image": "/etc/x.png"}, r"key 'image': .*absolute path"),
    "url": ({"image": "https://example.org/a.png"}, r"key 'image': .*URL 'https://example.org/a.png'"),
    "rle of another size": (
        {"rle": [encode_rle(np.ones((3, 4), dtype=bool))]},
        r"key 'rle', region 0.*\[3, 4\].*24.*32",
    ),
    "rle of another type": ({"rle": "abc"}, r"'rle' is 'abc' \(str\), expected list"),
    "empty mask": ({"rle": [encode_rle(np.zeros((24, 32), dtype=bool))]}, r"key 'rle', region 0: the mask is empty"),
    "box upside down": ({"rle": None, "bbox": [[9, 9, 2, 2]]}, r"key 'bbox', region 0.*x0 <= x1"),
    "region of no form": ({"rle": None, "regions": [{"circle": 1}]}, r"key 'regions', region 0.*'circle'"),
    "region that is no object": ({"rle": None, "regions": [3]}, r"key 'regions': expected objects .*got 3"),
    "regions without an image": ({"image": None}, r"key 'rle': regions need an image"),
    "image of a region": ({"region_images": [1]}, r"key 'region_images': expected 1 indices of 1 images, got \[1\]"),
    "images of too many regions": ({"region_images": [0, 0]}, r"key 'region_images'.*got \[0, 0\]"),
    "images that are no list": ({"region_images": 0}, r"key 'region_images'.*got 0"),
    "unknown speaker": ({"conversations": asking(("system", "<mask>"))}, r"key 'from': got 'system', expected one of"),
    "assistant first": ({"conversations": asking(("gpt", "<mask>"))}, r"key 'conversations': expected a human turn"),
    "no turns": ({"conversations": []}, r"key 'conversations': expected a human turn first, got 0 turns"),
    "missing conversations": ({"conversations": None}, r"'conversations' is missing"),
    "turn without words": ({"conversations": [{"from": "human"}]}, r"'value' is missing"),
    "turn that is text": ({"conversations": ["hello"]}, r"key 'conversations': expected objects .*got 'hello'"),
    "too few mentions": ({"conversations": asking(("human", "far?"))}, r"found 0 '<mask>' in the text, expected 1"),
    "unknown category": ({"category": "weather"}, r"key 'category': .*'weather'"),
    "category of another type": ({"category": 4}, r"'category' is 4 \(int\), expected str"),
    "answer that says nothing": ({"normalized_answer": "some"}, r"key 'normalized_answer': .*'some'"),
    "answer of another type": ({"normalized_answer": [1]}, r"key 'normalized_answer': expected text or a number"),
    "negative count": ({"normalized_answer": -1}, r"key 'normalized_answer': .*-1"),
    "sentence of another type": ({"freeform_answer": 5}, r"key 'freeform_answer': expected text, got 5"),
    "sentence about no region": ({"freeform_answer": "[Region 4]"}, r"key 'normalized_answer': .*names region 4"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_record_is_one_error_that_names_record_and_key(write_split, changes, message):
    dataset = write_split(record(id="good"), record(id="bad", **changes))
    with pytest.raises(ValueError, match=message) as caught:
        dataset[1]
    assert str(caught.value).startswith("toy.json, record 1 (id 'bad')")
    assert dataset[0].record_id == "good"
    assert len(dataset.task_types) == len(dataset.labels) == 2  # what others ask of all records does not fall over it


@pytest.mark.parametrize("cut", [None, 10, 60], ids=["no picture", "header alone", "truncated"])
@pytest.mark.parametrize("kind", ["images/a.png", "depths/a_depth.png"])
def test_a_damaged_file_is_an_error_that_names_record_and_file(write_split, tmp_path, kind, cut):
    dataset = write_split(record())
    path = tmp_path / "toy" / kind
    path.write_bytes(b"not a picture" if cut is None else path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=rf"toy.json, record 0 \(id 'one'\), key 'image': .*{path.name}"):
        dataset[0]


def test_a_picture_without_its_depth_map_is_an_error_where_the_split_has_depth(write_split):
    dataset = write_split(record(), record(image="b.png"), depths=("a",))
    assert len(dataset[0].depths) == 1
    with pytest.raises(ValueError, match=r"record 1 .*key 'image': .*b_depth\.png"):
        dataset[1]


def test_a_record_that_is_too_long_is_an_error(write_split):
    dataset = write_split(record(), max_length=20)
    with pytest.raises(ValueError, match=r"record 0 \(id 'one'\): \d+ tokens, expected at most 20"):
        dataset[0]


def test_bad_records_are_skipped_and_counted_by_policy(write_split, tmp_path):
    counted_in = tmp_path / "bad.jsonl"
    dataset = write_split(record(id="a"), record(id="b", image="no.png"), record(id="c"), record(id="d"))
    safe = SafeDataset(dataset, BadRecordPolicy("skip", 0.25), counted_in=counted_in, name_of=dataset.where)
    assert [safe[index].record_id for index in range(4)] == ["a", "c", "c", "d"]
    assert count_bad_records(counted_in) == 1
    (line,) = map(json.loads, counted_in.read_text().splitlines())
    assert line["index"] == 1
    assert "key 'image'" in line["reason"]
    strict = SafeDataset(
        dataset, BadRecordPolicy("skip", 0.2), counted_in=tmp_path / "strict.jsonl", name_of=dataset.where
    )
    with pytest.raises(TooManyBadRecordsError, match="1 of 4 records"):
        strict[1]


def test_texts_are_read_past_bad_records(write_split, tmp_path):
    write_split(record(), record(conversations=None), record(conversations=["x"]))
    assert read_texts(tmp_path / "toy.json") == ["How many pallets are in <mask>?", "There is 1 pallet."]


def test_json_lines_are_read_as_an_array_is(write_split, tmp_path, processor):
    array = write_split(record(), record(id="two"))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, array.records)))
    write_png(tmp_path / "lines/images/a.png", np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
    assert RegionDataset(tmp_path, "lines", processor)[1].record_id == "two"
