"""The report of a run: what it reads, what it shows, and that its page needs no other file."""

from __future__ import annotations

import asyncio
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fairlead.config import RunFolder
from fairlead.local.json_lines import JsonLines
from fairlead.local.status import read_status
from fairlead.report import charts, run_record
from fairlead.report.charts import Limit, Mark
from fairlead.report.page import (
    Headline,
    Page,
    PageAnswer,
    PageSample,
    PageSection,
    Picture,
    Table,
    parts,
    render,
)
from fairlead.report.run_report import write_report
from fairlead.report.scales import axis_of, thinned, tick_labels
from tests.evaluation_cards import known_card


class _Page(HTMLParser):
    """Collects text and attributes; fails on unbalanced tags."""

    void = frozenset({"meta", "img", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.charts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.labels += [value or "" for name, value in attrs if name == "aria-label"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.charts += [value or "" for name, value in attrs if name == "points"]

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


def written(folder: RunFolder) -> _Page:
    write_report(folder, asyncio.run(read_status(folder)))
    return parse(folder.report_html.read_text(encoding="utf-8"))


def test_report_shows_the_card_of_an_evaluation(tmp_path: Path) -> None:
    folder = _run(tmp_path / "trial")
    folder.evaluation.mkdir()
    card = folder.evaluation / "card.json"
    before = run_record.RecordReader(folder).stamp()
    card.write_text(json.dumps(known_card()))
    assert run_record.RecordReader(folder).stamp() != before
    text = " ".join(written(folder).texts)
    for shown in (
        "Evaluation: safety",
        "harmful prompts refused",
        "0.0% (0% to 16%)",
        "100.0% (84% to 100%)",
        "reward prefers padding",
        "Share of harmful prompts whose answer declines, by phrase rules.",
    ):
        assert shown in text
    assert json.loads(folder.report_json.read_text())["card"]["items"] == {"harmful": 20, "length": 20}
    # A card that cannot be read, or of another version, is not shown.
    for content in ("{", "[]", json.dumps({**known_card(), "format": 99})):
        card.write_text(content)
        assert "Evaluation: safety" not in " ".join(written(folder).texts)


def test_report_of_a_run(tmp_path: Path) -> None:
    folder = _run(tmp_path / "trial")
    page = written(folder)

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
    assert "Reward: from 0.5 at update 1 to 1.5 at update 2, lowest 0.5, highest 1.5" in page.labels
    assert any("limits: stop above 10" in label for label in page.labels), "the limit of KL"
    assert len(page.charts) == 6
    html = folder.report_html.read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|<script|<link|<img", html), "the page refers to another file"
    assert not re.search(r'\sstyle="|\son\w+=', html), "the policy of the live page forbids inline styles"
    anchors = [link.removeprefix("#") for link in page.links]
    assert all(f'id="{anchor}"' in html for anchor in anchors)
    assert "learning" in anchors


def test_report_says_what_a_second_reward_model_confirms(tmp_path: Path) -> None:
    folder = _run(tmp_path / "trial")
    write_report(folder, asyncio.run(read_status(folder)))
    assert json.loads(folder.report_json.read_text())["confirmed"] is None
    rows = [
        {"update": 1, "eval_reward": 9.0},
        {"update": 2, "eval_reward": -0.5, "eval_heldout_reward": 0.25},
        {"update": 4, "eval_reward": 1.0, "eval_heldout_reward": 0.5},
        {"update": 6, "eval_reward": 1.5, "eval_heldout_reward": 0.75},
    ]
    _lines(folder.metrics("ppo"), *rows)
    page = written(folder)
    assert json.loads(folder.report_json.read_text())["confirmed"] == 0.25
    text = " ".join(page.texts)
    assert "by +0.50: 25% of the gain is confirmed." in text
    assert "reward model: from 0 at update 1 to -7.5 at update 6" not in " ".join(page.labels)
    assert any("second reward model: from 0 at update 2 to 0.5 at update 6" in one for one in page.labels)
    _lines(folder.metrics("ppo"), *rows[:3], {"update": 6, "eval_reward": -0.75, "eval_heldout_reward": 0.5})
    assert "did not rise on held-out prompts (-0.25)" in " ".join(written(folder).texts)


def test_report_of_a_run_without_updates(tmp_path: Path) -> None:
    text = " ".join(written(RunFolder(tmp_path)).texts)
    assert "PPO has not made an update yet." in text
    assert "No stage has reported progress yet." in text
    assert json.loads((tmp_path / "report.json").read_text())["queue"] == {}


def test_record_reads_curves_and_phases(tmp_path: Path) -> None:
    record = run_record.read(_run(tmp_path / "trial"))
    assert record.curve("reward") == ([1.0, 2.0], [0.5, 1.5])
    assert record.curve("response_length") == ([1.0], [9.0])
    assert record.curve("nothing") == ([], [])
    assert record.spans == [("wait", 0.0, 3.0), ("train", 3.0, 4.0), ("wait", 4.0, 8.0)]


def test_render_shows_and_escapes_every_part() -> None:
    picture = charts.bars({"a<": 0.25, "b": 1.0}, x_label="share", mark=0.5)
    page = Page(
        title="T<",
        lead="lead &",
        headlines=(Headline("1", "label", "meaning"),),
        sections=(
            PageSection("first", "text", tables=(Table(("c",), (("<cell>",),)),)),
            PageSection("second", "more", pictures=(Picture("bars", picture),)),
        ),
        samples=(PageSample("p", PageAnswer("x", (("gold", 1.0), ("proxy", -2.5))), PageAnswer("")),),
        samples_text="chosen so",
        footer="foot",
    )
    found = parse(render(page))
    text = " ".join(found.texts)
    for shown in ("T<", "lead &", "meaning", "<cell>", "chosen so", "+1.00", "-2.50", "foot", "a<", "0.25"):
        assert shown in text
    assert text.index("<cell>") < text.index("chosen so") < text.index("more")
    assert text.count("chosen so") == 1
    assert set(parts(page)) > {"state", "headlines", "samples", "first-text", "second-tables"}


def test_lines_show_near_limits_and_name_far_ones() -> None:
    curve = ([1.0, 2.0, 3.0], [1.0, float("nan"), 2.0])
    limits = [Limit(2.5, "above", "warn"), Limit(90.0, "above", "stop")]
    drawn = charts.lines({"KL": curve}, x_label="update", limits=limits, marks=[Mark(2, "round 2")])
    page = parse(f"<div>{drawn}</div>")
    assert page.labels == [
        "KL: from 1 at update 1 to 2 at update 3, lowest 1, highest 2; limits: warn above 2.5, "
        "stop above 90; round 2 at update 2"
    ]
    assert drawn.count('class="limit warn"') == 1
    assert 'class="limit stop"' not in drawn
    assert "↑ stop above 90" in page.texts
    assert page.charts[0].count(",") == 2, "what is not finite is left out"
    assert "update 3: 2" in page.texts


def test_charts_of_nothing_say_so() -> None:
    empty = ([1.0], [float("nan")])
    for drawn in (
        charts.lines({"a": empty}, x_label="x"),
        charts.histograms({"a": []}, x_label="x"),
        charts.timeline([], rows=[]),
    ):
        assert "no figures yet" in drawn
    assert charts.spark(empty) == ""
    assert "0.90 of 3 are right" in charts.calibration([charts.Bin(0.95, 0.9, 3)])


def test_timeline_cuts_long_pauses_out() -> None:
    spans = [("wait", 0.0, 10.0), ("train", 10.0, 20.0), ("wait", 620.0, 630.0)]
    drawn = charts.timeline(spans, rows=["wait", "train"])
    assert "seconds by phase: wait 20, train 10" in drawn
    assert "a pause of 600 s is cut out" in drawn


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 10.0], ["0.0", "2.5", "5.0", "7.5", "10.0"]),
        ([-1.0, 1.0], ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ([12_000.0, 12_400.0], ["12,000", "12,100", "12,200", "12,300", "12,400"]),
        ([0.0, 4e-7], ["0", "1e-07", "2e-07", "3e-07", "4e-07"]),
        ([1.06e-7, 1.1e-7], ["1.06e-07", "1.07e-07", "1.08e-07", "1.09e-07", "1.1e-07"]),
    ],
)
def test_ticks_are_round_and_of_one_precision(values: list[float], ticks: list[str]) -> None:
    assert tick_labels(axis_of(values).ticks(4)) == ticks


def test_thinned_curve_keeps_its_extremes() -> None:
    x = [float(i) for i in range(10_000)]
    y = [0.0] * 10_000
    y[7_777], y[1_234] = 5.0, -5.0
    kept = thinned(x, y)
    assert len(kept[0]) <= 162
    assert (kept[0][0], kept[0][-1]) == (0.0, 9_999.0)
    assert (7_777.0, 5.0) in zip(*kept, strict=True)
    assert (1_234.0, -5.0) in zip(*kept, strict=True)


def test_json_lines_reads_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = JsonLines(path)
    assert lines.read() == []
    path.write_text('{"a": 1}\n[1]\n{"a": 2')
    assert lines.read() == [{"a": 1}]
    with path.open("a") as file:
        file.write('}\n{"a": 3}\n')
    assert lines.read() == [{"a": 1}, {"a": 2}, {"a": 3}]
    replacement = tmp_path / "new"
    replacement.write_text('{"a": 9}\n')
    replacement.replace(path)
    assert lines.read() == [{"a": 9}]
    path.write_text("")
    assert lines.read() == []
    some = JsonLines(path, ends=2)
    path.write_text("".join(f'{{"a": {i}}}\n' for i in range(9)))
    assert [row["a"] for row in some.read()] == [0, 1, 7, 8]
