import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from region_training.tables import Table
from sprc.contact_sheet import RegionMatch, RetrievalCase, RetrievedImage, write_contact_sheet

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 200), "grey": (128, 128, 128)}


@pytest.fixture
def paths(tmp_path) -> dict[str, Path]:
    found = {}
    for name, colour in COLOURS.items():
        found[name] = tmp_path / f"{name}.png"
        Image.new("RGB", (400, 300), colour).save(found[name])
    return found


def make_case(paths, **changes):
    results = tuple(RetrievedImage(name, paths[name], score) for name, score in (("red", 0.91), ("green", 0.42)))
    given = {
        "pair_id": "12",
        "reference": paths["grey"],
        "caption": "make it green",
        "results": results,
        "target_name": "green",
        "target": paths["green"],
        "target_rank": 2,
    }
    return RetrievalCase(**(given | changes))


class Page(HTMLParser):
    """Tiles of the page: label, whether it is the target, rectangles; and all text."""

    def __init__(self, text):
        super().__init__()
        self.tiles, self.text, self.tags = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        if tag == "figure":
            self.tiles.append({"target": "target" in values["class"].split(), "rects": [], "text": ""})
        elif tag == "img":
            self.tiles[-1]["picture"] = values["src"]
        elif tag == "rect":
            box = [float(values[name]) for name in ("x", "y", "width", "height")]
            self.tiles[-1]["rects"].append((values["class"], box))

    def handle_data(self, data):
        self.text += data
        if self.tiles:
            self.tiles[-1]["text"] += data


def page_of(tmp_path, *cases, **options):
    path = write_contact_sheet(tmp_path / "out" / "sheet.html", cases, **({"title": "Sheet"} | options))
    return path.read_text(), Page(path.read_text())


def colour_of(address):
    image = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))))
    assert image.size == (200, 150)
    return image.getpixel((100, 75))


def test_reference_results_and_target(tmp_path, paths):
    _, page = page_of(tmp_path, make_case(paths))
    assert "target at rank 2" in page.text
    assert "make it green" in page.text
    reference, first, second = page.tiles
    for tile, name in ((reference, "grey"), (first, "red"), (second, "green")):
        assert colour_of(tile["picture"]) == pytest.approx(COLOURS[name], abs=6)
    assert [tile["target"] for tile in page.tiles] == [False, False, True]
    assert "1. 0.910" in first["text"]
    assert "2. 0.420" in second["text"]


def test_a_target_beyond_the_results_is_shown_after_them(tmp_path, paths):
    case = make_case(paths, target_name="blue", target=paths["blue"], target_rank=31)
    _, page = page_of(tmp_path, case)
    assert [tile["target"] for tile in page.tiles] == [False, False, False, True]
    assert "rank 31" in page.tiles[3]["text"]
    assert colour_of(page.tiles[3]["picture"]) == pytest.approx(COLOURS["blue"], abs=6)


def test_without_a_target_nothing_is_said_of_it(tmp_path, paths):
    _, page = page_of(tmp_path, make_case(paths, target_name=None, target=None, target_rank=None))
    assert "target at rank" not in page.text
    assert not any(tile["target"] for tile in page.tiles)


def test_boxes_are_drawn_where_they_are(tmp_path, paths):
    case = make_case(
        paths,
        reference_boxes=((0.1, 0.2, 0.5, 0.5),),
        target_boxes=((0.0, 0.0, 0.25, 1.0),),
        region_match=RegionMatch((0.1, 0.2, 0.5, 0.5), "red", (0.5, 0.5, 1.0, 1.0), 0.777),
    )
    _, page = page_of(tmp_path, case)
    reference, first, second = (tile["rects"] for tile in page.tiles)
    assert [kind for kind, _ in reference] == ["pair", "match"]
    assert reference[0][1] == pytest.approx([0.1, 0.2, 0.4, 0.3])
    assert first == [("match", [0.5, 0.5, 0.5, 0.5])]
    assert second == [("pair", [0.0, 0.0, 0.25, 1.0])]
    assert "Best region match: on red, similarity 0.777" in page.text


def test_the_set_and_the_category(tmp_path, paths):
    subset = tuple(RetrievedImage(name, paths[name], 0.5) for name in ("blue", "green"))
    _, page = page_of(tmp_path, make_case(paths, subset=subset, category="toptee"))
    assert "toptee" in page.text
    assert "Its set" in page.text
    assert [tile["target"] for tile in page.tiles[3:]] == [False, True]


def test_scores_stand_above(tmp_path, paths):
    table = Table("Recall", ("metric", "model"), (("R@1", 51.96),))
    _, page = page_of(tmp_path, make_case(paths), text="Held out.", table=table)
    assert page.text.index("Held out.") < page.text.index("51.96") < page.text.index("make it green")


def test_the_page_is_safe_and_alone(tmp_path, paths):
    case = make_case(paths, caption='<script>alert("x")</script>', pair_id="<b>1</b>")
    text, page = page_of(tmp_path, case, title="a & b")
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "a &amp; b" in text
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(addresses) == 3
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert "default-src 'none'" in text


def test_cases_keep_their_order(tmp_path, paths):
    _, page = page_of(tmp_path, make_case(paths, caption="second first"), make_case(paths, caption="first second"))
    assert page.text.index("second first") < page.text.index("first second")


def test_cases_that_cannot_be_shown(paths):
    with pytest.raises(ValueError, match=r"query '12': got the box \(0\.5, 0\.2, 0\.1, 0\.5\)"):
        make_case(paths, reference_boxes=((0.5, 0.2, 0.1, 0.5),))
    with pytest.raises(ValueError, match=r"got the box \(0\.0, 0\.0, 10\.0, 10\.0\)"):
        make_case(paths, target_boxes=((0.0, 0.0, 10.0, 10.0),))
    make_case(paths, target_boxes=((-0.0009, 0.0, 1.0009, 1.0),))
    with pytest.raises(ValueError, match="got the target 'green', its file None and rank 2, expected all three"):
        make_case(paths, target=None)
    match = RegionMatch((0.0, 0.0, 1.0, 1.0), "blue", (0.0, 0.0, 1.0, 1.0), 0.5)
    with pytest.raises(ValueError, match="the region match is on 'blue', which is not shown"):
        make_case(paths, region_match=match)


def test_a_picture_that_cannot_be_read_is_named(tmp_path, paths):
    paths["red"].write_text("no picture")
    with pytest.raises(ValueError, match=r"red\.png"):
        write_contact_sheet(tmp_path / "sheet.html", [make_case(paths)], title="Sheet")
