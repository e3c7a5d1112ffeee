"""Which tokens of a conversation are learnt: the answers and their ends, under the templates of real families."""

import datetime as dt

import chat_templates as templates
import pytest

from node.core.errors import DataError
from node.core.types import IGNORED_LABEL
from node.data.formats import Chat, Message, RowError
from node.data.templates import ChatRenderer, Encoder

TWO_TURNS = Chat(
    (Message("user", "Hi?"), Message("assistant", "Ho."), Message("user", "And né?"), Message("assistant", "Éh!"))
)


def learnt(tokenizer, chat=TWO_TURNS, template="tokenizer_default", *, train_on_inputs=False):
    """Return the document, and the runs of learnt tokens as text."""
    rendered = ChatRenderer(tokenizer, template, train_on_inputs=train_on_inputs).render(chat)
    (document,) = Encoder(tokenizer, 512).chats([rendered])
    runs, run = [], []
    for token, label in zip([*document.input_ids, 0], [*document.labels, IGNORED_LABEL], strict=True):
        if label != IGNORED_LABEL:
            assert label == token, "a label is its own token: the shift is the loss's business"
            run.append(token)
        elif run:
            runs.append(tokenizer.decode(run))
            run = []
    return document, runs


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (templates.CHATML, ["Ho.<|im_end|>", "Éh!<|im_end|>"]),
        (templates.LLAMA3, ["Ho.<|eot_id|>", "Éh!<|eot_id|>"]),
        (templates.MISTRAL, [" Ho.</s>", " Éh!</s>"]),
        (templates.GEMMA, ["Ho.<end_of_turn>", "Éh!<end_of_turn>"]),
        (templates.QWEN3, ["Ho.<|im_end|>", "<think>\n\n</think>\n\nÉh!<|im_end|>"]),
        (templates.NO_END, ["Ho.", "Éh!</s>"]),
        (None, ["Ho.", "Éh!</s>"]),
    ],
    ids=["chatml", "llama3", "mistral", "gemma", "qwen3", "without-end", "no-template"],
)
def test_answers_and_their_ends_are_learnt_and_nothing_else(byte_tokenizer, template, answers):
    tokenizer = byte_tokenizer(template)

    document, runs = learnt(tokenizer)

    assert runs == answers
    if template not in (None, templates.NO_END):
        conversation = [{"role": m.role, "content": m.content} for m in TWO_TURNS.messages]
        # The templates with a date in them have their fixed one here.
        options = {"date_string": "26 Jul 2024", "tokenize": True, "return_dict": False}
        assert list(document.input_ids) == tokenizer.apply_chat_template(conversation, **options)


def test_thoughts_that_the_template_leaves_out_are_not_looked_for(byte_tokenizer):
    thoughtful = [
        Message(m.role, f"<think>hm</think>\n{m.content}") if m.role == "assistant" else m for m in TWO_TURNS.messages
    ]

    _, runs = learnt(byte_tokenizer(templates.THINKING), Chat(tuple(thoughtful)))

    assert runs == ["Ho.<|im_end|>", "<think>hm</think>\nÉh!<|im_end|>"]


def test_no_template_is_written_plainly_and_said_so(byte_tokenizer):
    tokenizer = byte_tokenizer(None)
    renderer = ChatRenderer(tokenizer, "tokenizer_default")

    rendered = renderer.render(
        Chat((Message("system", "Be kind."), Message("user", "Hi?"), Message("assistant", "Ho.")))
    )

    assert rendered.text == "Be kind.\n\n### User:\nHi?\n\n### Assistant:\nHo."
    assert "no chat template" in renderer.note


def test_chatml_can_be_asked_for_over_the_model_s_own(byte_tokenizer):
    _, runs = learnt(byte_tokenizer(templates.GEMMA), template="chatml")

    assert runs == ["Ho.<|im_end|>", "Éh!<|im_end|>"]


def test_train_on_inputs_learns_all_but_the_first_token(byte_tokenizer):
    document, _ = learnt(byte_tokenizer(templates.UNSTABLE), train_on_inputs=True)

    assert document.labels[0] == IGNORED_LABEL
    assert document.labels[-1] == IGNORED_LABEL, "the line's end after the last answer teaches nothing"
    assert document.labels[1:-1] == document.input_ids[1:-1]


def test_template_that_depends_on_the_answer_is_refused_rather_than_guessed(byte_tokenizer):
    with pytest.raises(DataError, match="turn 4 differently depending on its answer") as refusal:
        learnt(byte_tokenizer(templates.UNSTABLE))

    assert "train_on_inputs" in refusal.value.hint


@pytest.mark.parametrize("template", [templates.DATED, templates.LLAMA3], ids=["strftime_now", "date_string"])
def test_template_with_today_s_date_gives_the_same_tokens_tomorrow(byte_tokenizer, template):
    rendered = ChatRenderer(byte_tokenizer(template), "tokenizer_default").render(TWO_TURNS)

    assert "2024" in rendered.text
    assert str(dt.datetime.now(tz=dt.UTC).year) not in rendered.text


def test_conversation_that_the_template_refuses_is_a_bad_row_with_its_words(byte_tokenizer):
    chat = Chat((Message("system", "Be kind."), Message("user", "Hi?"), Message("assistant", "Ho.")))

    with pytest.raises(RowError, match="System role not supported"):
        learnt(byte_tokenizer(templates.GEMMA), chat)


def test_answer_that_repeats_the_question_is_found_where_it_is(byte_tokenizer):
    chat = Chat((Message("user", "assistant\nHi"), Message("assistant", "assistant\nHi")))

    _, runs = learnt(byte_tokenizer(templates.CHATML), chat)

    assert runs == ["assistant\nHi<|im_end|>"]


def test_text_ends_with_end_of_text_and_every_piece_begins_as_the_tokenizer_wants(byte_tokenizer):
    plain = Encoder(byte_tokenizer(None), 8)
    with_bos = Encoder(byte_tokenizer(None, adds_bos=True), 8)
    tokenizer = byte_tokenizer(None)

    (pieces,) = plain.texts(["abcdefghij"])
    (pieces_with_bos,) = with_bos.texts(["abcdefghij"])

    assert [tokenizer.decode(piece.input_ids) for piece in pieces] == ["abcdefgh", "ij</s>"]
    assert [tokenizer.decode(piece.input_ids) for piece in pieces_with_bos] == ["<s>abcdefg", "<s>hij</s>"]
    assert all(piece.labels[0] == IGNORED_LABEL for piece in pieces + pieces_with_bos)
    assert all(piece.labels[1:] == piece.input_ids[1:] for piece in pieces + pieces_with_bos)


def test_text_that_fills_a_piece_loses_no_end(byte_tokenizer):
    (pieces,) = Encoder(byte_tokenizer(None), 8).texts(["abcdefg"])

    assert [len(piece) for piece in pieces] == [8]


def test_smollm2_learns_its_answers_and_their_ends(smollm2):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    document, runs = learnt(tokenizer)

    assert runs == ["Ho.<|im_end|>", "Éh!<|im_end|>"]
    assert tokenizer.decode(document.input_ids).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )
    assert tokenizer.eos_token == "<|im_end|>"
