"""Sets of questions in their published form, and the stream that is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tiny_t5 import keyed_row, quail_row, save_questions, sciq_row, write_rows

from cl_lora.benchmarks import found, make_benchmark, validate_benchmark_config
from cl_lora.benchmarks.sources.text_sets import TEXT_SETS, Question, Row, known_set, load_parts
from cl_lora.benchmarks.streams.few_shot_language import Prompt
from cl_lora.support.errors import UserError
from cl_lora.support.registry import origin
from cl_lora.tasks import CHOICE


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_questions(tmp_path_factory.mktemp("questions"))


def config(root: Path | None, **more: Any) -> dict[str, Any]:
    return {"kind": "few_shot_language", "root": None if root is None else str(root), **more}


def read(name: str, values: dict[str, Any], seed: int = 0) -> Question:
    return TEXT_SETS[name].read(Row(values, "row 0"), np.random.default_rng(seed))


def test_sciq_tells_the_right_answer_apart() -> None:
    row = {
        "question": "What do plants breathe in? ",
        "distractor3": "iron",
        "distractor1": "helium",
        "distractor2": "neon",
        "correct_answer": "carbon dioxide",
        "support": "Plants take up carbon dioxide.",
    }
    orders = set()
    for seed in range(40):
        made = read("sciq", row, seed)
        assert made.question == "What do plants breathe in?"
        assert made.context == "Plants take up carbon dioxide."
        assert made.options[made.answer] == "carbon dioxide"
        assert sorted(made.options) == ["carbon dioxide", "helium", "iron", "neon"]
        orders.add(made.answer)
    assert orders == {0, 1, 2, 3}
    assert read("sciq", {**row, "support": ""}).context == ""


@pytest.mark.parametrize("name", ["commonsense_qa", "arc_challenge"])
@pytest.mark.parametrize("labels", ["ABCD", "1234", "ABCDE"])
def test_labelled_choices(name: str, labels: str) -> None:
    texts = ["tin", "oak", "rain", "fog", "dust"][: len(labels)]
    row = {
        "id": "7",
        "question": "What grows?",
        "choices": {"label": list(labels), "text": texts},
        "answerKey": labels[1],
    }
    expected = Question("What grows?", tuple(texts), 1)
    assert read(name, row) == expected
    pairs = [{"label": a, "text": b} for a, b in zip(labels, texts, strict=True)]
    assert read(name, {**row, "choices": pairs}) == expected


def test_quail_has_a_number() -> None:
    row = {
        "id": "1",
        "context_id": "c",
        "context": "Ann ate.",
        "question": "Who ate?",
        "answers": ["Bob", "not enough information", "Ann", "Cy"],
        "correct_answer_id": 2,
    }
    answers = ("Bob", "not enough information", "Ann", "Cy")
    assert read("quail", row) == Question("Who ate?", answers, 2, "Ann ate.")


@pytest.mark.parametrize("answer", ["oak", "B", 1])
def test_a_set_of_ones_own(tmp_path: Path, answer: object) -> None:
    row = {"question": "What grows?", "options": ["tin", "oak"], "answer": answer, "context": "c"}
    write_rows(tmp_path / "mine" / "train.jsonl", [row])
    made = known_set("mine", str(tmp_path))
    assert load_parts(made, str(tmp_path), 0) == {
        "train": (Question("What grows?", ("tin", "oak"), 1, "c"),)
    }


def test_the_parts_of_each_set(root: Path) -> None:
    made = make_benchmark(config(root), None)
    assert made.names == ("sciq", "commonsense_qa", "quail", "arc_challenge")
    assert made.downstream == (3,)
    sizes = [(len(e.train), len(e.val), len(e.test)) for e in made.experiences]
    # The validation split of CommonsenseQA is its test part; the challenge split that of QuAIL.
    assert sizes == [(40, 24, 24), (40, 0, 24), (40, 24, 24), (40, 24, 24)]
    for experience in made.experiences:
        assert experience.task.kind is CHOICE
        assert experience.inputs.shape[1:] == (3,)
        assert experience.inputs.dtype == object
        parts = np.concatenate([experience.train, experience.val, experience.test])
        assert sorted(parts) == list(range(len(experience.inputs)))
    assert [len(e.task.labels) for e in made.experiences] == [4, 5, 4, 4]


def test_a_question_with_other_options_is_tested_but_not_trained_on(tmp_path: Path) -> None:
    save_questions(tmp_path, train=8, test=4)
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        file = tmp_path / "arc_challenge" / f"{split}.jsonl"
        extra = json.dumps(keyed_row(generator, "ABCDE", "E"))
        file.write_text(file.read_text() + extra + "\n")
    arc = make_benchmark(config(tmp_path), None).experiences[3]
    assert arc.task.labels == ("A", "B", "C", "D", "E")
    assert 4 not in arc.targets[arc.train]
    assert 4 in arc.targets[arc.test]
    _, names = CHOICE.strata(arc.task, arc.targets[arc.train])
    assert set(names) <= set("ABCD")


def test_a_folder_without_a_test_part_is_split(tmp_path: Path) -> None:
    save_questions(tmp_path, train=8, test=4)
    rows = [
        {"question": f"q{i}", "options": ["tin", "oak"], "answer": i % 2, "context": None}
        for i in range(20)
    ]
    write_rows(tmp_path / "mine" / "train.jsonl", rows)
    made = make_benchmark(
        config(tmp_path, sets=("mine", "sciq", "arc_challenge"), val_fraction=0.25), None
    )
    mine = made.experiences[0]
    assert (len(mine.train), len(mine.val), len(mine.test)) == (12, 4, 4)
    assert np.bincount(mine.targets[mine.test]).tolist() == [2, 2]


def test_caps_are_per_letter(root: Path) -> None:
    made = make_benchmark(config(root, samples_per_class=3, test_samples_per_class=2), None)
    for experience in made.experiences:
        assert np.bincount(experience.targets[experience.train]).max() == 3
        assert np.bincount(experience.targets[experience.test]).max() == 2


def test_the_fingerprint_is_of_the_content(root: Path, tmp_path: Path) -> None:
    first = make_benchmark(config(root), None).fingerprint
    assert make_benchmark(config(root), None).fingerprint == first
    assert make_benchmark(config(save_questions(tmp_path / "a")), None).fingerprint == first
    others = (
        config(save_questions(tmp_path / "b", seed=1)),
        config(root, split_seed=1),  # another order of SciQ's options
        config(root, option="({letter}) {text}"),
        config(root, samples_per_class=3),
        config(root, downstream="sciq"),
    )
    assert len({first, *(make_benchmark(c, None).fingerprint for c in others)}) == 6


def test_the_hub_gives_what_json_lines_give(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, *, name: str | None, split: str, cache_dir: str | None) -> Any:
        asked.append((path, name, split))
        (folder,) = (n for n, s in TEXT_SETS.items() if s.path == path)
        lines = (root / folder / f"{split}.jsonl").read_text().splitlines()
        return datasets.Dataset.from_list([json.loads(line) for line in lines])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert make_benchmark(config(None), None).fingerprint == (
        make_benchmark(config(root), None).fingerprint
    )
    assert asked == [
        *(("allenai/sciq", None, split) for split in ("train", "validation", "test")),
        *(("tau/commonsense_qa", None, split) for split in ("train", "validation")),
        *(("textmachinelab/quail", None, s) for s in ("train", "validation", "challenge")),
        *(("allenai/ai2_arc", "ARC-Challenge", s) for s in ("train", "validation", "test")),
    ]


def test_what_the_hub_cannot_give_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"train split of allenai/sciq .* no network; give local"):
        validate_benchmark_config(config(None))
    assert found(config(None, cache_dir=str(tmp_path))) is None
    for made in TEXT_SETS.values():
        (tmp_path / str(made.path).replace("/", "___")).mkdir()
    assert "allenai___sciq" in str(found(config(None, cache_dir=str(tmp_path))))


def test_where_local_sets_are(root: Path, tmp_path: Path) -> None:
    assert str(root / "sciq") in str(found(config(root)))
    assert found(config(tmp_path / "none")) is None


# How a question is put ------------------------------------------------------------------------

ASKED = Question("Who {ate}?", ("Ann", "Bob"), 0, "Ann ate. {x}")


def test_the_prompt_of_a_question() -> None:
    before, passage, after = Prompt().parts(ASKED)
    assert (before, passage) == ("", "Ann ate. {x}")
    assert after == "\n\nQuestion: Who {ate}?\nOptions:\nA. Ann\nB. Bob\nAnswer:"
    bare = Question("Who?", ("Ann", "Bob"), 0)
    assert Prompt().parts(bare) == ("", "", "Question: Who?\nOptions:\nA. Ann\nB. Bob\nAnswer:")


def test_a_prompt_of_ones_own() -> None:
    made = Prompt("Read: {context} Then {question} of {options}!", "({letter}) {text}")
    assert made.parts(ASKED) == ("Read: ", "Ann ate. {x}", " Then Who {ate}? of (A) Ann\n(B) Bob!")
    without = Prompt("{question} {options}")
    assert without.parts(ASKED)[1] == ""


@pytest.mark.parametrize(
    "prompt", ["{question}", "{question} {options} {answer}", "{question} {question} {options}",
               "{question!r} {options}", "{question} {options} {", "{context} {context} {question}"]
)  # fmt: skip
def test_a_prompt_that_is_none(prompt: str) -> None:
    with pytest.raises(UserError, match=r"Expected benchmark.prompt to have \{question\} and"):
        validate_benchmark_config(config(None, prompt=prompt))


# What is wrong with data ----------------------------------------------------------------------


def broken(folder: Path, name: str, row: Any, split: str = "train") -> dict[str, Any]:
    """Return the config of a whole stream whose first row of one file is ``row``."""
    save_questions(folder, train=4, test=4)
    file = folder / name / f"{split}.jsonl"
    line = row if isinstance(row, str) else json.dumps(row)
    file.write_text(line + "\n" + file.read_text())
    return config(folder)


RNG = np.random.default_rng(0)
SCIQ, ARC, QUAIL = sciq_row(RNG), keyed_row(RNG), quail_row(RNG)


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("sciq", "{", r"line 1 of .*train.jsonl to be a JSON object but it is no JSON"),
        ("sciq", "[1]", r"line 1 of .* to be a JSON object but got list"),
        ("sciq", {"question": "q"}, r"column 'correct_answer' of line 1 .* it has question;"),
        ("sciq", {**SCIQ, "question": 3}, r"'question' of line 1 .* to hold a text but got 3"),
        ("sciq", {**SCIQ, "question": " "}, r"Expected a question in line 1 .* but it is empty"),
        ("arc_challenge", {**ARC, "answerKey": "F"}, r"one of its options 'A', .* but got 'F'"),
        ("arc_challenge", {**ARC, "choices": "AB"}, r"column 'label' of line 1"),
        (
            "arc_challenge",
            {**ARC, "choices": {"label": ["A", "B"], "text": ["x"]}},
            r"as many labels as texts in the choices of line 1 .* but got 2 and 1",
        ),
        ("commonsense_qa", {**ARC, "answerKey": ""}, r"one of its options 'A', .* but got ''"),
        ("quail", {**QUAIL, "correct_answer_id": 4}, r"one of its options 0, 1, 2, 3 but got 4"),
        ("quail", {**QUAIL, "answers": ["x"], "correct_answer_id": 0}, r"2 to 26 options.* got 1"),
        ("quail", {**QUAIL, "answers": ["x"] * 27}, r"2 to 26 options, .* but got 27"),
        ("quail", {**QUAIL, "answers": "x"}, r"'answers' of line 1 .* to hold a list of texts"),
    ],
)
def test_rows_that_are_wrong(tmp_path: Path, name: str, row: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate_benchmark_config(broken(tmp_path, name, row))


def test_an_answer_that_is_no_option(tmp_path: Path) -> None:
    row = {"question": "q", "options": ["tin", "oak"], "answer": "fog"}
    write_rows(tmp_path / "mine" / "train.jsonl", [row])
    with pytest.raises(UserError, match=r"line 1 .* one of its options 'tin', 'oak' but got 'fog'"):
        load_parts(known_set("mine", str(tmp_path)), str(tmp_path), 0)


def test_files_that_are_not_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which does not exist"):
        validate_benchmark_config(config(tmp_path / "none"))
    save_questions(tmp_path, train=4, test=4)
    (tmp_path / "quail" / "challenge.jsonl").unlink()
    with pytest.raises(UserError, match=r"challenge.jsonl to hold the test part of 'quail'"):
        validate_benchmark_config(config(tmp_path))
    (tmp_path / "quail" / "challenge.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"Cannot read .*challenge.jsonl \(UnicodeDecodeError\)"):
        validate_benchmark_config(config(tmp_path))
    with pytest.raises(UserError, match=r"'squiq': did you mean 'sciq'"):
        validate_benchmark_config(config(root, sets=("squiq", "arc_challenge")))
    with pytest.raises(UserError, match=r"'arc_chalenge': did you mean 'arc_challenge'"):
        validate_benchmark_config(config(root, downstream="arc_chalenge"))


def test_images_and_texts_are_told_apart(root: Path) -> None:
    with pytest.raises(UserError, match=r"model that takes texts, which .*few_shot_language has"):
        make_benchmark(config(root), 32)
    with pytest.raises(UserError, match=r"model that takes images, which benchmark.kind=shapes"):
        make_benchmark({"kind": "shapes"}, None)


def test_every_set_says_where_its_answers_are() -> None:
    for name, made in TEXT_SETS.items():
        assert made.name == name
        assert made.summary
        assert origin(made.read).endswith(name)
