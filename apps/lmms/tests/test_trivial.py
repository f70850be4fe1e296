"""What the questions give away without a video."""

from lmms.records import parse_record
from lmms.trivial import QuestionOnly, questions_of

ASKED = [
    ("direction", "Where is the red circle going?", "left"),
    ("direction", "Where is the red circle going?", "left"),
    ("direction", "Where is the red circle going?", "up"),
    ("direction", "Where is the blue circle going?", "up"),
    ("direction", "Where is the green circle going?", "up"),
    ("count", "How many shapes are there?", "two"),
    (None, "What happens?", "nothing"),
]


def test_the_most_frequent_answer_to_the_same_words():
    blind = QuestionOnly(ASKED)
    assert blind.answer("direction", "Where is the red circle going?") == "left"
    assert blind.answer("direction", "where is the RED circle going") == "left"
    assert blind.answer("count", "How many shapes are there?") == "two"


def test_other_words_get_the_most_frequent_answer_of_their_kind():
    blind = QuestionOnly(ASKED)
    assert blind.answer("direction", "Where is the yellow circle going?") == "up"
    assert blind.answer(None, "What else happens?") == "nothing"


def test_another_kind_gets_the_most_frequent_answer_of_all():
    assert QuestionOnly(ASKED).answer("speed", "Which one is faster?") == "up"


def test_a_tie_is_broken_by_the_words_whatever_the_order_of_the_records():
    pair = [("order", "Which one?", "red"), ("order", "Which one?", "blue")]
    assert QuestionOnly(pair).answer("order", "Which one?") == "blue"
    assert QuestionOnly(pair[::-1]).answer("order", "Which one?") == "blue"


def test_without_training_records_it_says_nothing():
    assert QuestionOnly([]).answer("order", "Which one?") == ""


def test_every_answer_of_a_conversation_is_a_question_of_its_own():
    words = [("human", "<video>\nWhere?"), ("gpt", "left"), ("human", "How many?"), ("gpt", "two"), ("gpt", "shapes")]
    turns = [{"from": speaker, "value": value} for speaker, value in words]
    record = parse_record({"conversations": turns, "video": "a.mp4", "kind": "talk"}, "here")
    assert questions_of(record) == [
        ("talk", "Where?", "left"),
        ("talk", "How many?", "two"),
        ("talk", "How many?", "shapes"),
    ]
