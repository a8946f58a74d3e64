"""Speech sets in their on-disk formats: what each part holds, what is missing, and buckets."""

import pytest
import torch

from common.errors import EncoreError
from common.formats import speech
from common.formats.audio import load_audio, resample
from common.formats.speech import (
    COMMANDS,
    EMOTIONS,
    buckets,
    iemocap,
    length_table,
    read_emotions,
    speech_command_words,
    speech_commands,
)
from tests import tiny

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
ANNOTATORS = "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
CODES = ("ang", "hap", "exc", "neu", "sad", "fru", "xxx")


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Four words of three clips each, one background recording, and the two lists."""
    root = tmp_path_factory.mktemp("commands")
    for word in ("yes", "go", "bed", "zero"):
        for i in range(3):
            tiny.wav(root / word / f"{i}.wav", 400)
    tiny.wav(root / "_background_noise_" / "hum.wav", 400)
    (root / "validation_list.txt").write_text("yes/1.wav\nbed/1.wav\n")
    (root / "testing_list.txt").write_text("go/2.wav\nzero/2.wav\n")
    return root


def served(clips, root):
    """{file below root: class name} of a part."""
    return {p.relative_to(root).as_posix(): COMMANDS[label] for p, label in zip(clips.paths, clips.labels, strict=True)}


NOISE = {"_background_noise_/hum.wav": "silence"}


def test_the_lists_split_words_into_twelve_classes_and_all_else_is_training(commands):
    parts = speech_commands(commands)
    assert served(parts.valid, commands) == {"yes/1.wav": "yes", "bed/1.wav": "unknown"} | NOISE
    assert served(parts.test, commands) == {"go/2.wav": "go", "zero/2.wav": "unknown"} | NOISE
    train = served(parts.train, commands)
    assert len(train) == 9
    assert train["yes/2.wav"] == "yes"  # in no list
    assert train["zero/0.wav"] == "unknown"
    assert not train.keys() & {"yes/1.wav", "bed/1.wav", "go/2.wav", "zero/2.wav"}
    assert [COMMANDS.index(name) for name in ("yes", "go", "unknown", "silence")] == [0, 9, 10, 11]


def test_every_word_is_a_class_where_all_are_told_apart(commands):
    parts = speech_command_words(commands)
    assert [path.parent.name for path in parts.test.paths] == ["go", "zero"]
    assert parts.test.labels.tolist() == [1, 3]
    assert parts.valid.labels.tolist() == [0, 2]
    assert len(parts.train.paths) == 8
    assert not any(path.parent.name.startswith("_") for part in parts for path in part.paths)


def test_the_official_test_archive_replaces_the_testing_list_whose_clips_stay_out_of_training(commands, tmp_path):
    for folder in ("_silence_", "_unknown_", "go"):
        tiny.wav(tmp_path / folder / "0.wav", 400)
    parts = speech_commands(commands, tmp_path)
    expected = {"_silence_/0.wav": "silence", "_unknown_/0.wav": "unknown", "go/0.wav": "go"}
    assert served(parts.test, tmp_path) == expected
    assert not served(parts.train, commands).keys() & {"go/2.wav", "zero/2.wav"}


def test_missing_or_foreign_lists_and_folders_are_errors_that_name_the_file(commands, tmp_path):
    tiny.wav(tmp_path / "yes" / "0.wav", 400)
    with pytest.raises(EncoreError, match=r"validation_list\.txt: cannot be read"):
        speech_commands(tmp_path)
    (tmp_path / "validation_list.txt").write_text("yes/0.wav\n")
    with pytest.raises(EncoreError, match=r"testing_list\.txt: cannot be read"):
        speech_commands(tmp_path)
    (tmp_path / "testing_list.txt").write_text("no/0.wav\n")
    with pytest.raises(EncoreError, match=r"testing_list\.txt: names no clip"):
        speech_commands(tmp_path)
    (tmp_path / "testing_list.txt").write_text("yes/0.wav\n")
    with pytest.raises(EncoreError, match="no clip is left to train on"):
        speech_commands(tmp_path)
    tiny.wav(tmp_path / "yes" / "1.wav", 400)
    with pytest.raises(EncoreError, match=r"no _background_noise_/\*\.wav there"):
        speech_commands(tmp_path)
    with pytest.raises(EncoreError, match=r"nothing: no \*/\*\.wav there"):
        speech_commands(commands, tmp_path / "nothing")


def line(utterance, emotion):
    return f"[6.2901 - 8.2357]\t{utterance}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n"


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """Five sessions of one dialogue with an utterance of each code; utterances of left-out codes have no recording."""
    root = tmp_path_factory.mktemp("iemocap")
    for session in range(1, 6):
        folder, dialogue = root / f"Session{session}", f"Ses0{session}F_impro01"
        text = HEADER
        for i, code in enumerate(CODES):
            text += line(f"{dialogue}_F{i:03d}", code) + ANNOTATORS
            if code not in ("fru", "xxx"):
                tiny.wav(folder / "sentences" / "wav" / dialogue / f"{dialogue}_F{i:03d}.wav", 4000 + 200 * i)
        table = folder / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
        table.parent.mkdir(parents=True)
        table.write_text(text)
        (table.parent / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07")  # the release holds such files
    return root


def test_four_emotions_with_excited_as_happy_and_one_session_left_out(sessions):
    parts = iemocap(sessions, 3)
    test = {p.stem: EMOTIONS[label] for p, label in zip(parts.test.paths, parts.test.labels, strict=True)}
    of = ("ang", "hap", "hap", "neu", "sad")
    assert test == {f"Ses03F_impro01_F{i:03d}": emotion for i, emotion in enumerate(of)}
    train, validation = set(parts.train.paths), set(parts.valid.paths)
    assert (len(train), len(validation)) == (16, 4)
    assert not train & validation
    assert {path.stem[:5] for path in train | validation} == {"Ses01", "Ses02", "Ses04", "Ses05"}
    assert torch.bincount(torch.cat([parts.train.labels, parts.valid.labels])).tolist() == [4, 8, 4, 4]
    for path, label in zip(*parts.train, strict=True):
        assert of[int(path.stem[-1])] == EMOTIONS[label]  # shuffled together with its label


def test_the_validation_part_is_the_same_in_every_run_and_another_for_another_seed(sessions):
    parts = [[path.stem for path in iemocap(sessions, 1, split_seed=seed).valid.paths] for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    assert set(parts[0]) != set(parts[2])


def test_emotion_files_pass_over_annotators_and_comments(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(
        (HEADER + line("a_F000", "neu") + ANNOTATORS + line("a_M000", "exc")).encode() + b"C-E1:\tx;\t(\xe9)\n"
    )
    assert read_emotions(path) == {"a_F000": "neu", "a_M000": "exc"}


@pytest.mark.parametrize(
    "broken",
    [
        "[6.29 - 8.23] a_F000 neu [2.5, 2.5, 2.5]\n",
        "[6.29]\ta_F000\tneu\t[2.5]\n",
        line("a_F000", "nue"),
        line("", "neu"),
    ],
)
def test_a_malformed_turn_is_an_error_that_names_file_and_line(broken, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(HEADER + broken)
    with pytest.raises(EncoreError, match=r"a\.txt, line 3: "):
        read_emotions(path)


def test_what_is_missing_of_iemocap_is_named(sessions, tmp_path):
    with pytest.raises(EncoreError, match=r"fold 6: IEMOCAP has sessions 1 to 5"):
        iemocap(sessions, 6)
    with pytest.raises(EncoreError, match=r"Session1/dialog/EmoEvaluation: no \*\.txt"):
        iemocap(tmp_path, 1)
    with pytest.raises(EncoreError, match=r"validation_share 0\.0: leaves 0 of 20"):
        iemocap(sessions, 1, validation_share=0.0)
    table = tmp_path / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    table.parent.mkdir(parents=True)
    table.write_text(HEADER)
    with pytest.raises(EncoreError, match=r"Ses01F_impro01\.txt: holds no turn"):
        iemocap(tmp_path, 1)
    table.write_text(line("Ses01F_impro01_F000", "sad"))
    with pytest.raises(EncoreError, match=r"wav/Ses01F_impro01/Ses01F_impro01_F000\.wav: no such recording"):
        iemocap(tmp_path, 1)


def test_length_tables_are_written_once_and_read_back(tmp_path):
    root, tables = tmp_path / "LibriSpeech", tmp_path / "tables"
    for i in range(4):
        tiny.wav(root / "train-clean-100" / "103" / "1240" / f"103-1240-{i:04d}.flac", 1600 * (i + 1))
    entries = length_table(root, "train-clean-100", tables)
    assert entries[0] == ("train-clean-100/103/1240/103-1240-0003.flac", 6400)
    assert [length for _, length in entries] == [6400, 4800, 3200, 1600]
    table = tables / "train-clean-100.csv"
    lines = table.read_text().splitlines()
    assert lines[0] == ",file_path,length,label"
    assert lines[1].startswith("0,train-clean-100/103/1240/103-1240-0003.flac,6400")
    table.write_text("\ufeff" + "\n".join([lines[0], lines[3], lines[1]]))  # with a byte order mark, unsorted
    assert [length for _, length in length_table(root, "train-clean-100", tables)] == [6400, 3200]
    table.write_text("path,frames\na,3\n")
    with pytest.raises(EncoreError, match=r"train-clean-100\.csv: expected the columns file_path,length"):
        length_table(root, "train-clean-100", tables)
    with pytest.raises(EncoreError, match=r"dev-clean: no \.flac files below it"):
        length_table(root, "dev-clean")


def test_buckets_hold_utterances_of_near_equal_length():
    lengths = [5, 900, 250, 260, 199, 200, 201, 800, 700]
    assert buckets(lengths, 3, longer_than=200) == [[1, 7, 8], [3, 2, 6]]
    assert buckets(lengths, 4) == [[1, 7, 8, 3], [2, 6, 5, 4]]  # the last alone is dropped
    assert buckets(lengths, 4, fewest=1)[-1] == [0]
    assert buckets([7, 8], 1) == [[1], [0]]


def test_an_epoch_of_buckets_is_a_multiple_of_the_accumulation(tmp_path):
    class Trainer:
        world_size, accumulate_grad_batches, global_rank = 1, 4, 0

        class fit_loop:
            class epoch_loop:
                class batch_progress:
                    class total:
                        ready = 0

    dataset = speech.Bucketed(list(range(12)), buckets(range(1, 13), 2))
    batches = list(speech.bucket_loader(dataset, list, trainer=Trainer, seed=0))
    assert len(batches) == 8  # six buckets, rounded up to two steps of four
    assert sorted(item for batch in batches[:6] for item in batch) == list(range(12))
    loaders = speech.BucketLoaders(batch_size=2)
    loaders.collate = torch.tensor
    loaders.valid = dataset
    assert [batch.tolist() for batch in loaders.val_dataloader()] == dataset.batches


@pytest.mark.parametrize("rate", [44101, 16001, 37800])
def test_odd_sampling_rates_keep_pitch_and_length(rate):
    t = torch.arange(rate) / rate
    resampled = resample(torch.sin(2 * torch.pi * 440 * t), rate, 16000)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)
    assert len(resampled) == 16000
    assert (resampled - expected)[200:-200].abs().max() < 2e-3


def test_files_of_no_audio_rate_or_too_long_are_one_line(tmp_path):
    tiny.wav(tmp_path / "slow.wav", 3000, rate=1)
    with pytest.raises(EncoreError, match=r"slow\.wav: a sampling rate of 1 Hz is none of audio"):
        load_audio(tmp_path / "slow.wav")
    tiny.wav(tmp_path / "long.wav", 16000)
    assert len(load_audio(tmp_path / "long.wav", longest=1.0)[0]) == 16000
    with pytest.raises(EncoreError, match=r"long\.wav: lasts 1 s, more than 0\.5 s; cut it into pieces"):
        load_audio(tmp_path / "long.wav", longest=0.5)
