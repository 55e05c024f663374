"""The report of a run: what it reads, what it shows, and that its page needs no other file."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fairlead.config import RunFolder
from trainer import charts, report, run_record
from trainer.page import Headline, Page, PageAnswer, PageSample, PageSection, Table, render


class _Page(HTMLParser):
    """Collects text and attributes; fails on unbalanced tags."""

    void = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.texts.append(data)


def parse(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def _lines(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _run(root: Path) -> RunFolder:
    folder = RunFolder(root)
    root.mkdir()
    _lines(
        folder.metrics("ppo"),
        {
            "update": 1,
            "step": 1,
            "reward": 0.5,
            "kl": 0.0,
            "entropy": 2.0,
            "eos_rate": 0.5,
            "response_length": 9,
        },
        {
            "update": 2,
            "step": 2,
            "reward": 1.5,
            "kl": 0.25,
            "entropy": 1.5,
            "eos_rate": 1.0,
            "mismatch_max": 1e-6,
        },
    )
    with folder.metrics("ppo").open("a", encoding="utf-8") as file:
        file.write('{"update": 3, "rew')
    _lines(
        folder.phases,
        {"stage": "sft", "phase": "train", "start": 0.0, "end": 50.0},
        {"stage": "ppo", "phase": "wait", "start": 100.0, "end": 103.0},
        {"stage": "ppo", "phase": "train", "start": 103.0, "end": 104.0},
        {"stage": "ppo", "phase": "wait", "start": 104.0, "end": 108.0},
    )
    queue = {
        "tasks_dispatched": 8,
        "tasks_trained": 7,
        "tasks_duplicated": 0,
        "tasks_lost": 0,
        "dead_letters": 1,
    }
    folder.result("ppo").write_text(json.dumps({"updates": 2, "kl": 0.25, **queue}))
    folder.result("reward_model").write_text(
        json.dumps({"accuracy": 0.75, "ece": 0.12, "ece_calibrated": 0.03, "temperature": 1.5})
    )
    sample = {"prompt": "who?", "before": "<b>me</b>", "after": "", "score_before": -1.0, "score_after": 2.0}
    folder.result("evaluation").write_text(json.dumps({"samples": [sample]}))
    return folder


def test_report_of_a_run(tmp_path: Path) -> None:
    folder = _run(tmp_path / "trial")
    assert report.main([str(folder.root)]) == 0

    figures = json.loads(folder.report_json.read_text())
    assert figures["queue"] == {
        "tasks_dispatched": 8,
        "tasks_trained": 7,
        "tasks_duplicated": 0,
        "tasks_lost": 0,
        "dead_letters": 1,
    }
    assert figures["seconds"] == {"wait": 7.0, "train": 1.0}
    assert figures["ppo"]["updates"] == 2
    assert figures["samples"][0]["prompt"] == "who?"

    page = parse(folder.report_html.read_text(encoding="utf-8"))
    text = " ".join(page.texts)
    for shown in (
        "Run trial",
        "+0.50 → +1.50",
        "75%",
        "0.120 → 0.030",
        "its temperature, 1.50",
        "waiting for rollouts",
        "88%",
        "who?",
        "<b>me</b>",
        "(empty answer)",
    ):
        assert shown in text
    assert len(page.links) == 7, "six curves and the timeline"
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    for link in page.links:
        assert base64.b64decode(link.partition(",")[2]).startswith(b"<?xml")


def test_page_refers_to_no_other_file(tmp_path: Path) -> None:
    folder = _run(tmp_path / "trial")
    assert report.main([str(folder.root)]) == 0
    html = re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "", folder.report_html.read_text())
    assert not re.search(r"https?:|url\(|@import|<script|<link", html)


def test_report_of_a_run_without_updates(tmp_path: Path) -> None:
    assert report.main([str(tmp_path)]) == 0
    text = " ".join(parse((tmp_path / "report.html").read_text()).texts)
    assert "PPO has not made an update yet." in text
    assert json.loads((tmp_path / "report.json").read_text())["queue"] == {}


def test_report_by_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path / "trial")
    file = tmp_path / "run.toml"
    file.write_text(f'name = "trial"\nruns = "{tmp_path}"\n')
    assert report.main(["--config", str(file)]) == 0
    assert (tmp_path / "trial" / "report.html").is_file()
    assert report.main(["--config", str(file), "--set", "name=absent"]) == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown == f"ConfigError: run: got '{tmp_path / 'absent'}', allowed: the folder of a run"


def test_record_reads_curves_and_phases(tmp_path: Path) -> None:
    record = run_record.read(_run(tmp_path / "trial"))
    assert record.curve("reward") == ([1.0, 2.0], [0.5, 1.5])
    assert record.curve("response_length") == ([1.0], [9.0])
    assert record.curve("nothing") == ([], [])
    assert record.spans == [("wait", 0.0, 3.0), ("train", 3.0, 4.0), ("wait", 4.0, 8.0)]


def test_render_shows_and_escapes_every_part() -> None:
    picture = charts.bars({"a": 0.25, "b": 1.0}, x_label="share", mark=0.5)
    page = Page(
        title="T<",
        lead="lead &",
        headlines=(Headline("1", "label", "meaning"),),
        sections=(
            PageSection("first", "text", tables=(Table(("c",), (("<cell>",),)),)),
            PageSection("second", "more"),
        ),
        samples=(PageSample("p", PageAnswer("x", (("gold", 1.0), ("proxy", -2.5))), PageAnswer("")),),
        samples_text="chosen so",
        footer="foot",
    )
    found = parse(render(page))
    text = " ".join(found.texts)
    for shown in ("T<", "lead &", "meaning", "<cell>", "chosen so", "+1.00", "-2.50", "foot"):
        assert shown in text
    assert text.index("first") < text.index("chosen so") < text.index("second")
    assert text.count("chosen so") == 1
    assert picture.startswith("data:image/svg+xml;base64,")


def test_charts_are_deterministic() -> None:
    bins = [charts.Bin(0.6, 0.5, 10), charts.Bin(0.9, 0.95, 3)]
    assert charts.calibration(bins) == charts.calibration(bins)
    assert charts.calibration(bins) != charts.calibration(bins[:1])
    spans = [("wait", 0.0, 1.0), ("train", 1.0, 4.0)]
    assert charts.timeline(spans, rows=["wait", "train"]) == charts.timeline(spans, rows=["wait", "train"])
    same = charts.histograms({"before": [1.0, 1.0], "after": [1.0]}, x_label="x")
    assert same.startswith("data:image/svg+xml;base64,")
