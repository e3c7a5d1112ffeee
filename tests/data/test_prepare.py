"""From files to documents: the whole way through the room."""

import json

import chat_templates as templates
import datasets
import pytest

from node.config.recipe import Recipe
from node.core.errors import DataError
from node.core.types import IGNORED_LABEL
from node.data.dataset import prepare


def a_recipe(**values):
    return Recipe.model_validate({"base_model": "m", "sequence_len": 128, **values})


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tokenizer(byte_tokenizer):
    return byte_tokenizer(templates.CHATML)


CHATS = [{"prompt": f"What is {i}?", "completion": f"Number {i}."} for i in range(50)]


def test_all_formats_in_one_folder_become_documents(tmp_path, tokenizer):
    write_rows(tmp_path / "a.jsonl", CHATS[:3])
    (tmp_path / "b.csv").write_text("instruction,input,output\nDo,it,Done\n")
    (tmp_path / "c.txt").write_text("x" * 300)

    data = prepare(a_recipe(), tokenizer, [tmp_path])

    texts = [tokenizer.decode(document.input_ids) for document in data.train]
    assert len(texts) == 3 + 1 + 3
    assert texts[0] == "<|im_start|>user\nWhat is 0?<|im_end|>\n<|im_start|>assistant\nNumber 0.<|im_end|>\n"
    assert texts[3].startswith("<|im_start|>user\nDo\n\nit<|im_end|>")
    assert texts[-1] == "x" * (300 - 2 * 128) + "</s>"
    assert data.report.num_rows == 5
    assert data.report.num_train_tokens == sum(map(len, data.train))


def test_same_data_gives_the_same_documents_and_digest(tmp_path, tokenizer):
    path = write_rows(tmp_path / "a.jsonl", CHATS)

    first, second = (prepare(a_recipe(val_set_size=0.1), tokenizer, [path]) for _ in range(2))

    assert first == second
    write_rows(path, CHATS[:-1])
    assert prepare(a_recipe(val_set_size=0.1), tokenizer, [path]).report.digest != first.report.digest


def test_held_out_examples_are_not_trained_on_wherever_they_stand(tmp_path, tokenizer):
    path = write_rows(tmp_path / "a.jsonl", CHATS)
    data = prepare(a_recipe(val_set_size=5), tokenizer, [path])
    write_rows(path, CHATS[::-1] + CHATS)
    shuffled = prepare(a_recipe(val_set_size=5), tokenizer, [path])

    def texts(documents):
        return {tokenizer.decode(document.input_ids) for document in documents}

    assert len(data.held_out) == 5
    assert not texts(data.held_out) & texts(data.train)
    assert texts(shuffled.held_out) == texts(data.held_out)
    assert not texts(shuffled.held_out) & texts(shuffled.train)


def test_one_long_text_file_can_still_be_held_out_in_part(tmp_path, tokenizer):
    (tmp_path / "book.txt").write_text("".join(f"line {i}\n" for i in range(1000)))

    data = prepare(a_recipe(val_set_size=0.1), tokenizer, [tmp_path / "book.txt"])

    total = len(data.train) + len(data.held_out)
    assert len(data.held_out) == round(0.1 * total)


def test_bad_row_stops_with_file_line_and_what_was_expected(tmp_path, tokenizer):
    path = write_rows(tmp_path / "a.jsonl", [*CHATS[:2], {"prompt": "x", "completion": 3}, *CHATS[2:]])

    with pytest.raises(DataError) as refusal:
        prepare(a_recipe(), tokenizer, [path])

    assert str(refusal.value) == f"{path}:3: expected text in 'completion', found a number (3)"
    assert "on_bad_row: skip" in refusal.value.hint


def test_skipped_rows_are_counted_with_the_first_complaint(tmp_path, tokenizer):
    path = write_rows(tmp_path / "a.jsonl", [*CHATS[:2], {"prompt": "x", "completion": 3}, {"no": 1}, *CHATS[2:]])
    with path.open("a") as file:
        file.write("{torn\n")

    data = prepare(a_recipe(potluck={"on_bad_row": "skip"}), tokenizer, [path])

    (skipped,) = data.report.skipped
    assert (skipped.path, skipped.count) == (str(path), 3)
    assert skipped.first == f"{path}:3: expected text in 'completion', found a number (3)"
    assert len(data.train) == 50


def test_conversation_that_the_template_refuses_is_a_bad_row(tmp_path, byte_tokenizer):
    turns = [{"role": r, "content": r} for r in ("system", "user", "assistant")]
    path = write_rows(tmp_path / "a.jsonl", [CHATS[0], {"messages": turns}])

    with pytest.raises(DataError, match=r"a\.jsonl:2: the model's chat template refuses .*System role not supported"):
        prepare(a_recipe(), byte_tokenizer(templates.GEMMA), [path])


LONG = {"prompt": "q", "completion": "a" * 500}
LONG_QUESTION = {"prompt": "q" * 500, "completion": "a"}


@pytest.mark.parametrize(("strategy", "left"), [("drop", 1), ("truncate", 2)])
def test_longer_examples_are_dropped_or_cut_and_counted(tmp_path, tokenizer, strategy, left):
    path = write_rows(tmp_path / "a.jsonl", [CHATS[0], LONG, LONG_QUESTION])

    data = prepare(a_recipe(excess_length_strategy=strategy), tokenizer, [path])

    assert len(data.train) == left, "an example whose answer is cut off teaches nothing"
    assert data.report.num_too_long == 2
    assert max(map(len, data.train)) <= 128
    assert "2 of 3 examples are longer than sequence_len 128" in data.report.notes[0]


def test_longer_example_stops_when_asked_to(tmp_path, tokenizer):
    path = write_rows(tmp_path / "a.jsonl", [CHATS[0], LONG])

    with pytest.raises(DataError, match=r"a\.jsonl:2: the example has \d+ tokens, more than sequence_len 128"):
        prepare(a_recipe(excess_length_strategy="raise"), tokenizer, [path])


def test_nothing_left_says_why(tmp_path, tokenizer):
    with pytest.raises(DataError, match="no example is left of 1 rows: 1 are longer than sequence_len 128, 0 are bad"):
        prepare(a_recipe(), tokenizer, [write_rows(tmp_path / "a.jsonl", [LONG])])


def test_no_data_at_all_says_how_to_give_some(tokenizer):
    with pytest.raises(DataError, match="no data to train on") as refusal:
        prepare(a_recipe(), tokenizer)

    assert "--data" in refusal.value.hint


def test_recipe_s_datasets_are_read_with_their_columns(tmp_path, tokenizer):
    path = write_rows(tmp_path / "a.jsonl", [{"body": "hello"}])
    spec = {"path": str(tmp_path), "type": "text", "field": "body", "data_files": path.name}

    data = prepare(a_recipe(datasets=[spec]), tokenizer)

    assert tokenizer.decode(data.train[0].input_ids) == "hello</s>"


def test_axolotl_s_way_to_name_a_json_file_is_read(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "a.jsonl", [{"text": "hello"}])

    data = prepare(a_recipe(datasets=[{"path": "json", "data_files": "a.jsonl"}]), tokenizer)

    assert len(data.train) == 1


def test_split_of_a_local_file_is_refused_rather_than_passed_over(tmp_path, tokenizer):
    path = write_rows(tmp_path / "a.jsonl", CHATS)

    with pytest.raises(DataError, match=r"'split: train\[:10%\]' is for hub data sets"):
        prepare(a_recipe(datasets=[{"path": str(path), "split": "train[:10%]"}]), tokenizer)


def test_folder_written_by_datasets_is_read(tmp_path, tokenizer):
    rows = datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}])
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))

    data = prepare(a_recipe(), tokenizer, [tmp_path / "saved"])

    assert [tokenizer.decode(document.input_ids) for document in data.train] == ["one</s>", "two</s>"]
    with pytest.raises(DataError, match="there is no split 'test'") as refusal:
        prepare(a_recipe(datasets=[{"path": str(tmp_path / "saved"), "split": "test"}]), tokenizer)
    assert "it has train" in refusal.value.hint


def test_mistyped_path_is_not_looked_up_on_the_hub(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError, match=r"mine\.jsonl: there is no such file or folder"):
        prepare(a_recipe(), tokenizer, ["mine.jsonl"])


def test_hub_name_that_cannot_be_had_says_what_to_check(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(DataError, match="cannot load the data set 'nobody/nothing'") as refusal:
        prepare(a_recipe(datasets=[{"path": "nobody/nothing"}]), tokenizer)

    assert "local file" in refusal.value.hint


def test_every_document_keeps_the_contract_of_documents(tmp_path, tokenizer):
    write_rows(tmp_path / "a.jsonl", [*CHATS, {"text": "y" * 129}, {"text": "z" * 128}])

    data = prepare(a_recipe(), tokenizer, [tmp_path])

    for document in data.train:
        assert 2 <= len(document) <= 128
        assert document.labels[0] == IGNORED_LABEL
        assert any(label != IGNORED_LABEL for label in document.labels)
        pairs = zip(document.input_ids, document.labels, strict=True)
        assert all(label in (token, IGNORED_LABEL) for token, label in pairs)
