"""A class's place in the list is its position in the file, whatever its number is."""

import pytest
from psalm.label_space import LabelSpace

CATEGORIES = [
    {"id": 7, "name": "cat", "isthing": 1},
    {"id": 1, "name": "road", "isthing": 0},
    {"id": 90, "name": "dog", "isthing": 1},
]


def test_positions_are_those_of_the_file_and_not_of_the_ids():
    space = LabelSpace.from_categories(CATEGORIES, "a.json")
    assert space.names == ("cat", "road", "dog")
    assert space.is_thing == (True, False, True)
    assert [space.position(number, "here") for number in (7, 1, 90)] == [0, 1, 2]


def test_files_of_instances_do_not_say_what_a_thing_is():
    assert LabelSpace.from_categories([{"id": 3, "name": "cat"}], "a.json").is_thing == (True,)


def test_an_unknown_category_is_named_with_its_record():
    space = LabelSpace.from_categories(CATEGORIES, "a.json")
    with pytest.raises(ValueError, match=r"record 4, key 'category_id': got 2, which is none of the 3"):
        space.position(2, "a.json record 4")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([CATEGORIES[0], CATEGORIES[0]], "the category id 7 stands twice"),
        (
            [CATEGORIES[0], {"id": 8, "name": "cat"}],
            r"a\.json, key 'categories': two classes are called 'cat', expected a name of its own",
        ),
        ([{"id": 0, "name": "background"}], "a class is called 'background'"),
        ([{"id": "0", "name": "cat"}], "category 0: 'id' is '0'"),
        (["cat"], "category 0: got 'cat', expected an object"),
    ],
)
def test_faulty_categories(categories, message):
    with pytest.raises(ValueError, match=message):
        LabelSpace.from_categories(categories, "a.json")


def test_the_three_lists_have_one_length():
    with pytest.raises(ValueError, match="one name, one is_thing and one category id per class, got 2, 1 and 2"):
        LabelSpace(("a", "b"), (True,), (1, 2))
