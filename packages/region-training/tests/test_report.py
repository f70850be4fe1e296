import base64
import json
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest
from region_training.curves import loss_curves
from region_training.images import write_png
from region_training.report import Section, write_report
from region_training.run_folder import RunFolder
from region_training.tables import Table

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@dataclass(frozen=True)
class Settings:
    name: str = "a"
    note: str = EVIL


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains where tags do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "my run")
    run.begin(Settings(), environment={"versions": {"torch": "2.15"}, "accelerators": []})
    lines = [{"step": step, "loss/total": 1.0 / step, "lr/heads": 1e-3, "grad_norm": 1.0} for step in (1, 2, 3)]
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.path / "parts.json").write_text(json.dumps([{"name": "heads", "trainable": True, "num_parameters": 12345}]))
    write_png(run.samples_path / "one.png", np.zeros((4, 4, 3), dtype=np.uint8))
    return run


def headings(page):
    return [text.strip() for text in page.text if text.strip()]


def test_the_report_holds_everything_of_a_run(run):
    run.finish({"accuracy": 0.875, "per_task": {"distance": 0.5}})
    path = write_report(run, [Section("Predictions", "First.\n\nSecond\nline.")])
    assert path == run.report_path
    page = Page(path.read_text(encoding="utf-8"))
    text = headings(page)
    for word in (
        *("my run", "Summary", "Predictions", "Samples", "Losses", "Learning rates", "Time and memory"),
        *("Parts of the model", "All results", "Configuration", "Environment"),
    ):
        assert text.count(word) >= 1, word
    assert "Finished; 3 steps logged." in text
    assert {"per_task.distance", "0.875", "12,345", "First.", "Second line."} <= set(text)
    assert page.tags.count("details") == 3
    assert page.tags.count("img") == 4


def test_the_report_needs_no_network_and_no_script(run):
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    addresses = [value for tag, name, value in page.attributes if name in ("src", "href")]
    assert all(value.startswith(("data:image/png;base64,", "#section-")) for value in addresses)
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes
    picture = next(value for _, name, value in page.attributes if name == "src")
    assert base64.b64decode(picture.partition(",")[2], validate=True).startswith(b"\x89PNG")


def test_texts_of_data_are_escaped_everywhere(run, tmp_path):
    write_png(tmp_path / "a.png", np.zeros((2, 2, 3), dtype=np.uint8))
    run.bad_records_path.write_text(json.dumps({"index": 0, "record": EVIL, "reason": EVIL}) + "\n")
    run.finish({EVIL: EVIL})
    figure = loss_curves(run.read_metrics())
    assert figure is not None
    section = Section(
        EVIL,
        EVIL,
        Table(EVIL, (EVIL,), ((EVIL,),)),
        figures={EVIL: figure},
        images={f'" onload="{EVIL}': tmp_path / "a.png"},
        code=EVIL,
    )
    for sections in ([section], [Section(EVIL, EVIL, collapsed=True)]):
        page = Page(write_report(run, sections).read_text(encoding="utf-8"))
        assert "script" not in page.tags
        assert not any(name.startswith("on") for _, name, _ in page.attributes)
        assert "".join(page.text).count(EVIL) >= 5


def test_samples_that_a_section_shows_are_not_shown_twice(run):
    sample = run.samples()[0]
    page = Page(write_report(run, [Section("Mine", images={"the one": sample})]).read_text(encoding="utf-8"))
    assert "Samples" not in headings(page)
    assert ("img", "alt", "the one") in page.attributes


def test_a_run_that_has_just_begun_has_a_report(tmp_path):
    run = RunFolder(tmp_path / "x")
    run.begin(Settings())
    text = headings(Page(write_report(run).read_text(encoding="utf-8")))
    assert "Not finished; no step logged." in text
    assert "Losses" not in text


def test_a_picture_that_is_none_is_refused(run, tmp_path):
    (tmp_path / "a.svg").write_text("<svg onload='alert(1)'/>")
    with pytest.raises(ValueError, match=r"a\.svg.*expected a PNG or JPEG file"):
        write_report(run, [Section("x", images={"a": tmp_path / "a.svg"})])
