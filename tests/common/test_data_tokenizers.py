"""Byte-level BPE: round trips, ids, and agreement with the public tokenizers on the same tiny vocabulary."""

import copy
import gzip
import json
import pickle

import pytest

from common.errors import EncoreError
from common.formats.tokenizers import ClipTokenizer, clean, clip_tokenizer, load_byte_bpe, train_byte_bpe

CORPUS = [
    "A small red circle is left of the large blue square.",
    "The small green triangle isn't above the red circle; it's below.",
    "Forty-two dogs (42) ran 1000 metres. Dogs don't stop.",
] * 4
HARD = " Hello  wörld\n\t漢字 😀 it's 123,456 <mask> </s> \x00 end "


@pytest.fixture(scope="module")
def bpe():
    return train_byte_bpe(CORPUS, 400)


@pytest.fixture(scope="module")
def clip():
    return ClipTokenizer.train(CORPUS, 600, context_length=16)


def test_byte_bpe_has_barts_special_ids_with_mask_last(bpe):
    assert (bpe.bos, bpe.pad, bpe.eos, bpe.unk) == (0, 1, 2, 3)
    assert bpe.mask == len(bpe) - 1
    assert bpe.special_ids == {0, 1, 2, 3, len(bpe) - 1}
    assert 261 < len(bpe) <= 400


def test_any_text_survives_a_round_trip_and_special_looking_text_is_text(bpe):
    ids = bpe.encode(HARD)
    assert bpe.decode(ids) == HARD
    assert not bpe.special_ids & set(ids)
    assert bpe.encode_batch([HARD, "red"]) == [ids, bpe.encode("red")]
    assert bpe.decode([bpe.bos, *bpe.encode("red"), bpe.eos]) == "red"
    assert bpe.decode([bpe.bos, *bpe.encode("red"), bpe.mask], skip_special=False) == "<s>red<mask>"


def test_merges_were_learned_and_training_is_deterministic(bpe):
    assert len(bpe.encode(CORPUS[0])) < len(CORPUS[0]) / 3
    assert train_byte_bpe(iter(CORPUS), 400).tokenizer.to_str() == bpe.tokenizer.to_str()


def test_pieces_that_start_a_word_are_known(bpe):
    starts = bpe.starts_word()
    ids = bpe.encode("x red circle")
    assert starts[ids].sum() == 2
    assert not starts[list(bpe.special_ids)].any()


def test_saved_byte_bpe_loads_with_the_same_ids(bpe, tmp_path):
    bpe.save(tmp_path)
    loaded = load_byte_bpe(tmp_path)
    assert loaded.encode(HARD) == bpe.encode(HARD)
    assert (loaded.mask, loaded.special_ids) == (bpe.mask, bpe.special_ids)


def test_byte_bpe_from_vocabulary_and_merges_equals_the_public_bart_tokenizer(bpe, tmp_path):
    from transformers import BartTokenizer

    state = json.loads(bpe.tokenizer.to_str())
    vocabulary = state["model"]["vocab"] | {"<mask>": bpe.mask}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in state["model"]["merges"])]))
    ours = load_byte_bpe(tmp_path)
    theirs = BartTokenizer(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    for text in [*CORPUS[:3], "  two spaces, naïve 漢字"]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"] == bpe.encode(text)
    assert (ours.mask, ours.special_ids) == (theirs.mask_token_id, set(theirs.all_special_ids))


def test_a_tokenizer_directory_without_its_files_is_an_error(tmp_path):
    with pytest.raises(EncoreError, match=r"no vocab\.json"):
        load_byte_bpe(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(EncoreError, match="not a byte-level BPE tokenizer"):
        load_byte_bpe(tmp_path)
    with pytest.raises(EncoreError, match="too small"):
        train_byte_bpe(CORPUS, 200)


def test_clip_cleaning_repairs_unescapes_twice_collapses_and_lowers():
    assert clean("  A &amp;lt;b&amp;gt;\n\n Photo of cafÃ© ") == "a <b> photo of café"
    assert clean("<I> &amp;amp; you") == "<i> & you"  # where a tag stands the repair leaves entities alone


def test_clip_ids_are_sot_pieces_eot_zeros_and_eot_is_the_largest(clip):
    row = clip("A red circle")[0].tolist()
    assert row[0] == clip.sot == len(clip) - 2
    assert row[1:4] == clip.encode("a red circle")
    assert row[4:] == [clip.eot] + [0] * 11
    assert clip.eot == len(clip) - 1 == clip("a red circle").max()


def test_a_long_caption_is_cut_before_eot_and_an_empty_one_is_sot_eot(clip):
    ids = clip(["red circle " * 40, ""])
    assert ids.shape == (2, 16)
    assert ids[0, -1] == clip.eot
    assert ids[0, 1:-1].tolist() == clip.encode("red circle " * 40)[:14]
    assert ids[1].tolist() == [clip.sot, clip.eot] + [0] * 14


def test_clip_text_survives_a_round_trip_up_to_case_and_spaces(clip):
    text = "Forty dogs aren't 漢字 😀 in a red square !"
    longer = ClipTokenizer.from_merges(clip.merges, context_length=77)
    assert longer.decode(longer(text)[0]) == "forty dogs aren 't 漢字 😀 in a red square !"


def test_clip_training_is_deterministic_and_keeps_to_its_size(clip):
    for _ in range(3):
        assert ClipTokenizer.train(iter(CORPUS), 600, context_length=16).merges == clip.merges
    assert len(ClipTokenizer.train(CORPUS, 540)) == 540
    assert ClipTokenizer.train(CORPUS, 540).merges == clip.merges[:26]  # 514 tokens need no merge
    with pytest.raises(EncoreError, match="514"):
        ClipTokenizer.train(CORPUS, 500)


def test_clip_equals_the_public_tokenizer_on_the_same_files(clip, tmp_path):
    from transformers import CLIPTokenizer

    clip.save(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(str(tmp_path))
    captions = [*CORPUS[:3], "42 squares & dogs!!", "é 漢字 😀", "we'll SEE it's_ok --- 'quoted'"]
    ours = clip_tokenizer(tmp_path, context_length=80)
    for caption, row in zip(captions, ours(captions).tolist(), strict=True):
        assert row[: row.index(ours.eot) + 1] == theirs(caption)["input_ids"]


def test_clip_from_the_published_merges_file_equals_the_hub_form(clip, tmp_path):
    lines = '"bpe_simple_vocab#version: 0.2\n' + "\n".join(" ".join(pair) for pair in clip.merges) + "\n"
    (tmp_path / "bpe.txt.gz").write_bytes(gzip.compress(lines.encode()))
    clip.save(tmp_path / "hub")
    from_merges, from_hub = clip_tokenizer(tmp_path / "bpe.txt.gz"), clip_tokenizer(tmp_path / "hub")
    assert from_merges.vocabulary == from_hub.vocabulary == clip.vocabulary
    assert (from_merges(HARD) == from_hub(HARD)).all()
    assert (from_merges.vocabulary["!"], from_merges.vocabulary["!</w>"]) == (0, 256)
    with pytest.raises(EncoreError, match=r"missing\.txt"):
        clip_tokenizer(tmp_path / "missing.txt")


def test_special_strings_in_a_text_are_text_in_a_copy_and_in_a_worker_too(bpe):
    text = "the </s> <mask>"
    ids = bpe.encode(text)
    assert not set(ids) & bpe.special_ids
    for other in (pickle.loads(pickle.dumps(bpe)), copy.deepcopy(bpe)):
        assert other.encode(text) == ids
        assert other.encode_batch([text]) == [ids]


def test_clips_end_token_in_a_caption_is_the_token_as_in_the_public_tokenizer(clip, tmp_path):
    from transformers import CLIPTokenizer

    clip.save(tmp_path)
    theirs = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in ("the <|endoftext|> cat", "the!<|endoftext|>cat", "<|startoftext|>x"):
        assert clip.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert clip.eot in clip.encode("the <|endoftext|> cat")
