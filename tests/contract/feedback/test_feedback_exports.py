"""Exports say what people said: `fairlead.data` and other tools read them back without loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from fairlead.config import RunConfig
from fairlead.data import sources
from fairlead.data.comparisons import Preference, RankedResponses, comparisons
from fairlead.data.demonstrations import Conversation, Demonstration, example
from fairlead.data.judged import judged as read_judgment
from fairlead.errors import DataError, InvalidInput
from fairlead.judgments import agreement, position_bias
from fairlead.types import Message
from services.feedback.exports import argilla, label_studio
from services.feedback.exports.card import About, folder, write_folder
from services.feedback.exports.formats import FORMATS, export
from services.feedback.exports.incoming import bring_in
from services.feedback.store.judged import Filter, Judged, Ranking, Writing
from services.feedback.store.records import NewAnswer
from tests.feedback_world import World, open_world, prompt, ranked, ranking_task

EVERYTHING = {"kinds": ("rank", "pair", "write", "edit", "prompt"), "cohorts": ("train", "heldout")}
HOSTILE = 'a "quoted" <script>\n\0 – \ud800 end'
PLAIN = replace(prompt(""), turns=(Message("text", "my lamp is late ."),))


@pytest.fixture
def judged(tmp_path: Path) -> tuple[World, list[Judged]]:
    """Return a store and judgments of every kind: ties, two labelers, one held out, hostile texts."""
    world = open_world(str(tmp_path / "feedback.db"), tmp_path)
    project = world.project(overlap=2)
    hostile = (NewAnswer(HOSTILE), NewAnswer("ü", weight_version="1.4", run="r"), NewAnswer("c"))
    world.add(
        project,
        ranking_task("one", k=4),
        ranking_task("hostile", answers=hostile, round=2),
        ranking_task(prompt=PLAIN, k=2, kind="pair"),
        ranking_task("alike", k=2),
        ranking_task("write", kind="write", answers=()),
        ranking_task("edit", kind="edit", k=2),
        ranking_task("prompt", kind="prompt", answers=()),
    )
    world.person("held", cohort="heldout")
    for handle in ("anna", "held"):
        person = world.person(handle)
        while (offer := world.store.leases.take(person, project.id)) is not None:
            said: Ranking | Writing = ranked(offer)
            if offer.kind == "edit":
                said = Writing(f"better, by {handle}", base=offer.answers[0][0])
            elif offer.kind in ("write", "prompt"):
                said = Writing(f"{offer.kind} {HOSTILE} by {handle}")
            elif offer.turns[0].content == "alike":
                said = Ranking(dict.fromkeys(dict(offer.answers), 1), note="private note")
            world.store.judgments.hand_in(offer.assignment.id, person, said)
    found = world.store.snapshots.judged(Filter(project.id, **EVERYTHING))  # type: ignore[arg-type]
    world.store.close()
    return world, found


def read(path: Path, content: bytes) -> list[sources.Line]:
    path.write_bytes(content)
    found = list(sources.scan(RunConfig(), str(path), field="file"))
    assert not any(isinstance(line, DataError) for line in found)
    return found  # type: ignore[return-value]


def texts_by_rank(one: Judged) -> list[tuple[int, str]]:
    ranks = (one.entry.body or {})["ranks"]
    return sorted(
        (rank, one.answers[answer].text.replace("\ud800", "\ufffd")) for answer, rank in ranks.items()
    )


def rankings_of(judged: Sequence[Judged]) -> list[Judged]:
    return [one for one in judged if one.task.kind in ("rank", "pair")]


def test_rankings_are_read_as_they_were_said(judged: tuple[World, list[Judged]], tmp_path: Path):
    _, found = judged
    content = export(found, "rankings")
    assert export(found, "rankings") == content
    lines = read(tmp_path / "rankings.jsonl", content)
    assert len(lines) == len(rankings_of(found)) + 2
    for line, one in zip(
        lines, [one for one in found if one.task.kind not in ("write", "prompt")], strict=True
    ):
        record = comparisons(line, tie_margin=0.0)
        assert isinstance(record, RankedResponses)
        pairs = sorted(zip((-int(worth) for worth in record.worths), record.texts, strict=True))
        if one.task.kind == "edit":
            assert [text[:6] for _, text in pairs] == ["better", "answer"]
        else:
            assert pairs == texts_by_rank(one)
            assert line.values["shown"] == list((one.entry.body or {})["shown"])
        assert isinstance(record.prompt, str) == (one.turns[0].role == "text")
        assert [line.values[name] for name in ("judgment", "task", "labeler", "cohort", "round", "late")] == [
            *(one.entry.id, one.entry.id if one.task.kind == "edit" else one.task.id),
            *(one.pseudonym, one.cohort, one.task.round, False),
        ]
    said = [one.judgment for one in rankings_of(found)]
    as_read = [read_judgment(line).judgment for line in lines]
    assert (
        agreement(as_read, seed=0).as_json() | {"judgments": len(said)} == agreement(said, seed=0).as_json()
    )
    assert position_bias(as_read) == position_bias(said)
    assert b"secret-run" not in content
    assert b"private note" not in content
    assert {tuple(line.values["weight_versions"]) for line in lines} == {(), ("1.4",)}


def test_pairs_of_one_ranking_are_joined_again_and_those_of_two_people_are_not(
    judged: tuple[World, list[Judged]], tmp_path: Path
):
    from trainer.rankings import elements

    _, found = judged
    lines = read(tmp_path / "pairs.jsonl", export(found, "pairs"))
    records = [comparisons(line, tie_margin=0.0) for line in lines]
    joined = list(elements(records))
    judgments = [line.values["judgment"] for line in lines]
    assert len(joined) == len(set(judgments))
    for element in joined:
        assert isinstance(element, list)
        assert len({judgments[records.index(pair)] for pair in element}) == 1
    rankings = [
        comparisons(line, tie_margin=0.0) for line in read(tmp_path / "r.jsonl", export(found, "rankings"))
    ]
    wanted = sorted((one.winner, one.loser) for ranking in rankings for one in ranking.compared)
    assert sorted((one.chosen, one.rejected) for one in records if isinstance(one, Preference)) == wanted


def test_demonstrations_and_prompts_are_read(judged: tuple[World, list[Judged]], tmp_path: Path):
    _, found = judged
    lines = read(tmp_path / "demonstrations.jsonl", export(found, "demonstrations"))
    examples = [example(line) for line in lines]
    assert all(isinstance(one, Conversation | Demonstration) for one in examples)
    completions = [line.values["completion"][0]["content"] for line in lines]
    clean = HOSTILE.replace("\ud800", "\ufffd")
    people = ("anna", "held")
    assert completions == [
        text for who in people for text in (f"write {clean} by {who}", f"better, by {who}")
    ]
    prompts = [line.values["prompt"] for line in read(tmp_path / "p.jsonl", export(found, "prompts"))]
    assert len(prompts) == 6 + 2
    assert "my lamp is late ." in prompts


def test_folder_loads_with_its_card(judged: tuple[World, list[Judged]], tmp_path: Path):
    world, _ = judged
    again = open_world(world.address, world.folder)
    project = again.store.projects.get("help")
    snapshot = again.store.snapshots.make(Filter(project.id, **EVERYTHING))  # type: ignore[arg-type]
    found = again.store.snapshots.read(snapshot.digest)
    about = About(
        'Help: "parcels"', "cc-by-4.0", ("en", "de"), guidelines="Be kind.", withdrawal="Write to us."
    )
    files = folder(found, snapshot, about)
    assert folder(found, snapshot, about) == files
    write_folder(tmp_path / "out", files)
    with pytest.raises(InvalidInput, match="a folder without files"):
        write_folder(tmp_path / "out", files)
    card = files["README.md"].decode()
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["license"], header["language"]) == ("cc-by-4.0", ["en", "de"])
    assert {config["config_name"] for config in header["configs"]} == {"rankings", "pairs", "demonstrations"}
    for text in (
        snapshot.digest,
        again.store.log.head().id,
        "Be kind.",
        "Write to us.",
        "labelers agree on 1.000",
    ):
        assert text in card
    figures = json.loads(files["figures.json"])
    assert (figures["judgments"], figures["labelers"], figures["agreement"]["rate"]) == (len(found), 2, 1.0)
    for split, cohort in (("train", "train"), ("test", "heldout")):
        name = f"{tmp_path / 'out'}?config=rankings&split={split}"
        rows = [
            line for line in sources.scan(RunConfig(), name, field="file") if not isinstance(line, DataError)
        ]
        records = [comparisons(line, tie_margin=0.0) for line in rows]
        assert len(records) == len(
            [one for one in found if one.cohort == cohort and one.task.kind in ("rank", "pair", "edit")]
        )
        assert {line.values["cohort"] for line in rows} == {cohort}
    again.store.close()


@pytest.mark.parametrize("tool", ["argilla", "label-studio"])
def test_other_tools_round_trip_keeps_rank_tie_and_author(
    judged: tuple[World, list[Judged]], tmp_path: Path, tool: str
):
    _, found = judged
    content = export(found, tool)
    assert export(found, tool) == content
    if tool == "argilla":
        for line in content.decode().splitlines():
            fields = argilla.settings(json.loads(line)["metadata"]["answers"])["fields"]
            assert [field["name"] for field in fields] == list(json.loads(line)["fields"])
        items = list(argilla.from_records(json.loads(line) for line in content.decode().splitlines()))
    else:
        buckets = ElementTree.fromstring(label_studio.labeling_config(3)).findall("Ranker/Bucket")
        ranker = json.loads(content)[1]["annotations"][0]["result"][0]["value"]["ranker"]
        assert [bucket.get("name") for bucket in buckets] == list(ranker)
        assert ElementTree.fromstring(label_studio.pairwise_config()).find("Pairwise") is not None
        items = list(label_studio.from_tasks(json.loads(content)))
    other = open_world(str(tmp_path / "other.db"), tmp_path)
    project = other.project(overlap=1)
    counts = bring_in(other.store, project.id, tool, items)
    assert (counts.tasks, counts.judgments, counts.repeated) == (4, 8, 0)
    again = bring_in(other.store, project.id, tool, items)
    assert (again.tasks, again.judgments, again.repeated) == (0, 0, 8)
    brought = other.store.snapshots.judged(Filter(project.id, people=("import",)))
    handles = {person.id: person.handle for person in other.store.people.all()}

    def said(one: Judged, author: str) -> tuple[object, ...]:
        turns = tuple((turn.role, turn.content.replace("\ud800", "\ufffd")) for turn in one.turns)
        return (turns, texts_by_rank(one), author)

    ours = sorted(said(one, f"{tool}-{one.pseudonym}") for one in rankings_of(found))
    assert sorted(said(one, handles[one.entry.person or ""] or "") for one in brought) == ours
    assert any(len({rank for rank, _ in ranks}) < len(ranks) for _, ranks, _ in ours)  # type: ignore[misc,attr-defined]
    other.store.close()


def test_records_of_other_tools_that_are_wrong_are_named():
    good = {"fields": {"prompt": "p", "response-1": "a", "response-2": "b"}, "responses": {}}
    for change, message in (
        (
            {"fields": {"prompt": "p", "response-1": True, "response-2": "b"}},
            r"records\[0\].fields.response-1: got True",
        ),
        ({"fields": {"prompt": "p", "response-1": "a"}}, r"records\[0\].fields"),
        ({"fields": None}, r"records\[0\].fields: got None"),
        ({"fields": {**good["fields"], "prompt": 3}}, r"fields.prompt: got 3"),
        (
            {"responses": {"ranking": [{"user_id": "u", "value": ["response-1"]}]}},
            r"each of response-1, response-2 once",
        ),
        ({"responses": {"ranking": [{"user_id": 3, "value": []}]}}, r"user_id: got 3"),
        ({"responses": {"ranking": [{"user_id": "u", "value": "a"}]}}, r"an array of the options"),
    ):
        with pytest.raises(InvalidInput, match=message):
            list(argilla.from_records([good | change]))
    ordered = {"ranking": [{"user_id": "u", "value": ["response-2", "response-1"]}]}
    drafts = {"ranking": [{"user_id": "u", "value": ["response-2"], "status": "draft"}]}
    (item,) = argilla.from_records([good | {"responses": ordered}])
    assert item.rankings[0].ranks == (2, 1)
    assert next(argilla.from_records([good | {"responses": drafts}])).rankings == ()

    data = {"prompt": "p", "items": [{"id": 1, "body": "a"}, {"id": "x", "title": "b"}]}
    result = {"type": "ranker", "value": {"ranker": {"rank": ["x", "1"]}}}
    annotation = {"completed_by": {"email": "a@b.c"}, "result": [{"type": "textarea", "value": {}}, result]}
    (item,) = label_studio.from_tasks([{"data": data, "annotations": [annotation, {"was_cancelled": True}]}])
    assert (item.rankings[0].author, item.rankings[0].ranks) == ("a@b.c", (2, 1))
    for change, message in (
        ({"data": {"prompt": "p"}}, "`items` to rank"),
        ({"data": {"prompt": "p", "text1": True, "text2": "b"}}, r"text1: got True"),
        (
            {"annotations": [{"result": [{"type": "ranker", "value": {"ranker": {"rank": ["x"]}}}]}]},
            "each of 1, x once",
        ),
        (
            {
                "annotations": [
                    {"result": [{"type": "ranker", "value": {"ranker": {"a": ["x"], "b": ["1"]}}}]}
                ]
            },
            "as places",
        ),
    ):
        with pytest.raises(InvalidInput, match=message):
            list(label_studio.from_tasks([{"data": data, "annotations": [], **change}]))
    with pytest.raises(InvalidInput, match="one of rankings"):
        export([], "xml")
    assert set(FORMATS) == {"rankings", "pairs", "demonstrations", "prompts", "argilla", "label-studio"}
