"""BEATs' front end and data modules in their on-disk formats."""

from collections import Counter

import numpy as np
import pytest
import soundfile
import torch

from common.errors import EncoreError
from common.formats.speech import COMMANDS, Clips
from papers.beats import fixtures
from papers.beats.data import (
    AudioSetData,
    Crops,
    ESC10Data,
    ESC50Data,
    IEMOCAPData,
    SpeechCommandsV1,
    SpeechCommandsV2,
    WaveClips,
    num_frames,
    pad_batch,
    read_classes,
    read_segments,
    spectrogram,
)
from papers.beats.model import FBANK_MEAN, FBANK_STD
from tests.helpers import requires_mirror


def kaldi_by_hand(waveform, mels):
    """Kaldi's log-mel filterbank written out in numpy: Povey window, pre-emphasis 0.97, no energy, no dither."""
    samples = waveform.double().numpy() * 2**15
    count = 1 + (len(samples) - 400) // 160
    frames = np.stack([samples[160 * i : 160 * i + 400] for i in range(count)])
    frames = frames - frames.mean(1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = frames * np.hanning(400) ** 0.85
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    mel = lambda hz: 1127 * np.log(1 + hz / 700)  # noqa: E731
    edges = np.linspace(mel(20.0), mel(8000.0), mels + 2)
    at = mel(np.arange(257) * 16000 / 512)
    bank = np.stack(
        [
            np.clip(np.minimum((at - lo) / (mid - lo), (hi - at) / (hi - mid)), 0, None)
            for lo, mid, hi in zip(edges, edges[1:], edges[2:])
        ]
    )
    bank[:, 256] = 0  # Kaldi leaves the Nyquist bin out
    return np.log(np.maximum(power @ bank.T, np.finfo(np.float32).eps))


def test_spectrogram_is_kaldis_filterbank_over_twice_the_standard_deviation():
    torch.manual_seed(0)
    waveform = 0.1 * torch.randn(3000)
    ours = spectrogram(waveform, 40)
    expected = (kaldi_by_hand(waveform, 40) - FBANK_MEAN) / (2 * FBANK_STD)
    assert ours.shape == expected.shape == (num_frames(3000 / 16000), 40)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-3)
    assert num_frames(10) == 998


def test_audio_shorter_than_one_frame_is_an_error_that_names_the_clip():
    assert spectrogram(torch.zeros(400)).shape == (1, 128)
    with pytest.raises(EncoreError, match=r"a\.wav.*shorter than one frame"):
        spectrogram(torch.zeros(399), name="a.wav")


def test_a_batch_is_padded_with_zeros_and_says_how_long_each_clip_is():
    items = [(torch.ones(5, 3), torch.tensor(1)), (torch.ones(8, 3), torch.tensor(2))]
    batch = pad_batch(items)
    assert batch["spectrogram"].shape == (2, 1, 8, 3)
    assert batch["spectrogram"][0, 0, 5:].abs().sum() == 0
    assert batch["frames"].tolist() == [5, 8]
    assert "frames" not in pad_batch(items[:1])


@pytest.fixture(scope="module")
def audioset(tmp_path_factory):
    root = tmp_path_factory.mktemp("audioset")
    fixtures.audioset(root)
    return root


def test_segment_lists_give_labels_and_count_missing_clips(audioset):
    classes = read_classes(audioset / "class_labels_indices.csv")
    assert classes == {"/m/0a": 0, "/m/0b": 1, "/t/0c": 2}
    with pytest.warns(UserWarning, match=r"1 of 5 segments have no file .* \(first: clip-4\)"):
        paths, labels = read_segments(audioset / "segments.csv", classes, audioset / "audio")
    assert [path.name for path in paths] == ["clip-0.wav", "Yclip-1.wav", "clip-2.wav", "clip-3.wav"]
    assert labels.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1]]
    with pytest.raises(EncoreError, match=r"none of its 5 segments has a file"):
        read_segments(audioset / "segments.csv", classes, audioset)


def test_broken_lists_name_file_and_line(audioset, tmp_path):
    classes = read_classes(audioset / "class_labels_indices.csv")
    broken = tmp_path / "broken.csv"
    broken.write_text('# comment\nclip-0, 30.000, "/m/0a"\n')
    with pytest.raises(EncoreError, match=r"broken\.csv, line 2: expected"):
        read_segments(broken, classes, audioset / "audio")
    broken.write_text('clip-0, 30.000, 40.000, "/m/zz"\n')
    with pytest.raises(EncoreError, match="line 1: label '/m/zz' is not in the class list"):
        read_segments(broken, classes, audioset / "audio")
    with pytest.raises(EncoreError, match=r"nothing\.csv: cannot be read"):
        read_segments(tmp_path / "nothing.csv", classes, audioset)
    with pytest.raises(EncoreError, match="expected the columns index,mid"):
        read_classes(audioset / "segments.csv")


def test_training_cuts_are_random_and_evaluation_takes_the_start(audioset):
    path = audioset / "audio" / "clip-0.wav"
    clips = {
        train: WaveClips(Clips([path], torch.eye(1)), seconds=0.2, num_mel_bins=16, train=train)
        for train in (True, False)
    }
    start = torch.from_numpy(soundfile.read(path, dtype="float32")[0][:3200])
    assert torch.equal(clips[False][0][0], spectrogram(start, 16))
    torch.manual_seed(0)
    a, b = clips[True][0][0], clips[True][0][0]
    assert a.shape == b.shape == (18, 16)
    assert not torch.equal(a, b)


def test_esc50_holds_one_fold_out(tmp_path):
    fixtures.esc50(tmp_path)
    data = ESC50Data(str(tmp_path), fold=2, num_mel_bins=16, batch_size=2)
    data.setup()
    assert [int(data.valid[i][1]) for i in range(2)] == [1, 4]
    assert data.test.paths == data.valid.paths
    assert len(data.train) == 4
    with pytest.raises(EncoreError, match="no clip in fold 7"):
        ESC50Data(str(tmp_path), fold=7, batch_size=2).setup()


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return fixtures.commands(tmp_path_factory.mktemp("commands"))


def test_keywords_are_validated_and_tested_in_order_on_their_lists(commands):
    data = SpeechCommandsV1(str(commands), num_mel_bins=16, batch_size=8)
    data.setup()
    assert next(iter(data.val_dataloader()))["label"].tolist() == [10, 0, 11]  # bed, yes, silence
    assert next(iter(data.test_dataloader()))["label"].tolist() == [9, 10, 11]  # go, zero, silence
    words = SpeechCommandsV2(str(commands), num_mel_bins=16, batch_size=8)
    words.setup()
    assert next(iter(words.test_dataloader()))["label"].tolist() == [1, 3]  # of bed, go, yes, zero
    assert len(words.train) == 8


def test_silence_is_a_random_second_in_training_and_the_first_elsewhere(commands):
    data = SpeechCommandsV1(str(commands), num_mel_bins=16, batch_size=8)
    data.setup()
    hum = torch.from_numpy(soundfile.read(commands / "_background_noise_" / "hum.wav", dtype="float32")[0])
    assert torch.equal(data.valid[2][0], spectrogram(hum[:16000], 16))
    clips = data.train.dataset  # no drawing anew: item by item
    at = [path.name for path in clips.paths].index("hum.wav")
    torch.manual_seed(0)
    (a, label), (b, _) = clips[at], clips[at]
    assert a.shape == b.shape == (98, 16)
    assert not torch.equal(a, b)
    assert label == COMMANDS.index("silence")


def test_training_draws_all_classes_equally_often(commands, audioset, monkeypatch):
    data = SpeechCommandsV1(str(commands), num_mel_bins=16, batch_size=8)
    data.setup()
    monkeypatch.setattr("papers.beats.data.load_audio", lambda path, rate: (torch.zeros(400), rate))
    torch.manual_seed(0)
    drawn = Counter(int(data.train[0][1]) for _ in range(600))
    # 2 yes, 2 go, 4 unknown, 1 silence
    assert set(drawn) == {0, 9, 10, 11}
    assert all(count / 600 == pytest.approx(0.25, abs=0.06) for count in drawn.values())
    lists = {key.rpartition(".")[2]: value for key, value in fixtures.audioset(audioset).items()}
    balanced = AudioSetData(**lists, balance=True)
    with pytest.warns(UserWarning, match="skipped"):
        balanced.setup()
    shares = torch.stack([balanced.train[0][1] for _ in range(600)]).mean(dim=0)
    assert shares[2].item() == pytest.approx(1 / 3, abs=0.06)  # one clip of four, but a class of three
    assert len(balanced.valid) == 4


def test_emotions_have_a_session_left_out(tmp_path):
    fixtures.emotions(tmp_path)
    data = IEMOCAPData(str(tmp_path), fold=3, num_mel_bins=16, batch_size=8)
    data.setup()
    assert {path.stem[:5] for path in data.test.paths} == {"Ses03"}
    assert (len(data.train), len(data.valid), len(data.test)) == (16, 4, 5)
    assert next(iter(data.test_dataloader()))["frames"].max() <= num_frames(5000 / 16000)


def test_a_clip_shorter_than_a_crop_is_an_error():
    with pytest.raises(EncoreError, match="clip 1 has 7 frames, fewer than a crop of 8"):
        Crops([torch.zeros(9, 4), torch.zeros(7, 4)], torch.tensor([0, 1]), 8)


def test_audioset_module_serves_padded_batches_of_the_held_out_list(audioset):
    data = AudioSetData(
        str(audioset),
        train_csv="segments.csv",
        train_audio="audio",
        eval_csv="segments.csv",
        eval_audio="eval",
        num_mel_bins=16,
        batch_size=4,
    )
    with pytest.warns(UserWarning, match="skipped"):
        data.setup()
    batch = next(iter(data.val_dataloader()))
    assert batch["frames"].tolist() == [48, 38, 28, 18]
    assert batch["label"].sum().item() == 5


@requires_mirror("esc10")
def test_esc10_holds_out_one_of_five_folds():
    data = ESC10Data(fold=3, num_mel_bins=16, batch_size=4)
    data.setup()
    assert (len(data.train), len(data.valid)) == (320, 80)
    assert torch.bincount(data.valid.labels).tolist() == [8] * 10
    spectrogram_, label = data.valid[5]
    assert spectrogram_.shape == (128, 16)
    assert torch.equal(spectrogram_, data.valid[5][0])  # the middle, not a random crop
    assert 0 <= label < 10
