"""TERA's front ends against formulas, LibriSpeech and the other sets in their on-disk formats, and what is drawn."""

import random

import numpy as np
import pytest
import soundfile
import torch

from common.errors import EncoreError
from common.formats import tables
from common.worlds.sounds import SoundClips
from papers.tera import corpora, data, features, fixtures
from papers.tera.alteration import Policy
from papers.tera.corpora import PHONES, SPEAKERS, TEXTS, fold_phones, held_out, phone_labels
from papers.tera.data import AudioSegments, InMemory, LibriSpeechData, StoredSegments, altered_batch
from papers.tera.downstream import LibriSpeechProbe, SpeechCommandsProbe, read_alignments, read_split
from papers.tera.features import cmvn, extract, log_mel, set_level, with_deltas
from tests.helpers import requires_mirror


def speechlike(samples, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal(samples) * np.linspace(0.01, 0.1, samples)).float()


def log_mel_by_hand(wave):
    """ln(mel power + 1e-10) in numpy: reflected edges, periodic Hann of 400, HTK triangles on 201 bins."""
    padded = np.pad(wave.double().numpy(), 200, mode="reflect")
    count = 1 + len(wave) // 160
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft([padded[160 * i : 160 * i + 400] * window for i in range(count)])) ** 2
    mel = lambda hz: 2595 * np.log10(1 + hz / 700)  # noqa: E731
    edges = 700 * (10 ** (np.linspace(0, mel(8000), 82) / 2595) - 1)
    at = np.linspace(0, 8000, 201)
    bank = np.stack(
        [
            np.clip(np.minimum((at - lo) / (mid - lo), (hi - at) / (hi - mid)), 0, None)
            for lo, mid, hi in zip(edges, edges[1:], edges[2:])
        ]
    )
    return np.log(power @ bank.T + 1e-10)


def test_log_mel_is_the_repositorys_pipeline():
    wave = speechlike(8000)
    found = log_mel(wave)
    assert found.shape == (51, 80)
    np.testing.assert_allclose(found.numpy(), log_mel_by_hand(wave), atol=2e-3)
    level = set_level(wave)
    assert 20 * level.square().mean().sqrt().log10().item() == pytest.approx(-25, abs=1e-3)
    torch.testing.assert_close(extract(wave, "mel"), cmvn(log_mel(level)))
    assert not set_level(torch.zeros(10)).any()


def test_cmvn_is_per_channel_with_the_unbiased_deviation():
    x = torch.randn(40, 5) * torch.arange(1, 6) + 3
    y = cmvn(x)
    np.testing.assert_allclose(y.numpy(), (x.numpy() - x.numpy().mean(0)) / x.numpy().std(0, ddof=1), atol=1e-5)


def test_kaldi_front_ends_have_two_deltas_and_whole_frames():
    wave = speechlike(8000)
    assert extract(wave, "fbank").shape == (48, 240)
    assert extract(wave, "mfcc").shape == (48, 39)
    # CMVN takes the level away, but for the 2^-23 floor of Kaldi's logarithm
    torch.testing.assert_close(extract(wave, "mfcc"), extract(wave * 2, "mfcc"), atol=1e-2, rtol=0)
    ramp = torch.arange(20.0)[:, None] ** 2
    delta = with_deltas(ramp)
    assert delta.shape == (20, 3)
    t = torch.arange(20)[:, None]
    slope = sum(n * (ramp[(t + n).clamp(0, 19)] - ramp[(t - n).clamp(0, 19)]) for n in (1, 2)) / 10
    torch.testing.assert_close(delta[:, 1:2], slope[:, 0])
    assert delta[10, 1] == 20  # d/dt t^2
    assert delta[10, 2] == 2


def test_audio_that_gives_no_features_is_a_clear_error():
    with pytest.raises(EncoreError, match=r"a\.wav: 150 samples at 16 kHz, at least 201 are needed"):
        extract(torch.zeros(150), "mel", name="a.wav")
    with pytest.raises(EncoreError, match="399 samples at 16 kHz, at least 400"):
        extract(torch.zeros(399), "fbank")
    with pytest.raises(EncoreError, match="one frame has no deviation"):
        extract(torch.zeros(400), "mfcc")
    with pytest.raises(EncoreError, match="expected a mono waveform"):
        extract(torch.zeros(2, 16000), "mel")
    with pytest.raises(EncoreError, match="no front end is called 'cqt'"):
        extract(torch.zeros(16000), "cqt")


@pytest.mark.parametrize("kind", ["mel", "fbank", "mfcc"])
def test_silence_is_normalised_to_zero(kind):
    assert not extract(torch.zeros(16000), kind).any()


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory):
    """Two speakers, utterances of 0.4 to 2.4 s, in LibriSpeech's layout, with CPC's label files beside it."""
    root = tmp_path_factory.mktemp("LibriSpeech")
    fixtures.utterances(root, samples=tuple(6400 * (i + 1) for i in range(6)))
    fixtures.cpc_labels(root, root / "labels", surplus=2)
    return root


def test_segments_are_cropped_before_mel_normalisation_and_after_kaldis(librispeech):
    path = librispeech / "train-clean-100/103/198/103-198-0005.flac"
    wave = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    torch.manual_seed(0)
    mel = AudioSegments(librispeech, [path], "mel", longest=50)[0]
    assert mel.shape == (51, 80)
    assert mel.mean(dim=0).abs().max() < 1e-4  # over the crop
    torch.manual_seed(0)
    start = int(torch.randint(len(wave) - 8000 + 1, ()))
    torch.testing.assert_close(mel, cmvn(log_mel(set_level(wave)[start : start + 8000])))
    kaldi = AudioSegments(librispeech, [path], "mfcc", longest=50)[0]
    assert kaldi.shape == (50, 39)
    assert kaldi.mean(dim=0).abs().max() > 0.05  # over the whole file
    assert AudioSegments(librispeech, [path], "mel")[0].shape == (1 + len(wave) // 160, 80)


def test_stored_features_are_read_as_they_are_and_checked(tmp_path):
    (tmp_path / "train").mkdir()
    array = np.random.default_rng(0).standard_normal((30, 40))
    np.save(tmp_path / "train/a.npy", array)
    np.save(tmp_path / "train/b.npy", array[:, :39])
    (tmp_path / "train/c.npy").write_bytes((tmp_path / "train/a.npy").read_bytes()[:300])
    segments = StoredSegments(tmp_path, ["train/a.npy", "train/b.npy", "train/c.npy", "train/d.npy"], 40)
    torch.testing.assert_close(segments[0], torch.from_numpy(array).float())
    assert len(StoredSegments(tmp_path, ["train/a.npy"], 40, longest=9)[0]) == 9
    with pytest.raises(EncoreError, match=r"b\.npy: expected features of shape \(frames, 40\), got \(30, 39\)"):
        segments[1]
    for index in (2, 3):
        with pytest.raises(EncoreError, match=r"\.npy: not a readable \.npy file"):
            segments[index]


def test_short_utterances_are_dropped_and_a_set_without_long_ones_is_an_error(librispeech, monkeypatch):
    module = LibriSpeechData(str(librispeech), batch_size=2)
    module.setup()
    kept = [len(x) for i in range(len(module.train)) for x in module.train[i]]
    assert sorted(kept, reverse=True) == [241, 241, 201, 201]  # 38,400 and 32,000 samples and a few
    monkeypatch.setattr(data, "SHORTEST", 300)
    with pytest.raises(EncoreError, match="none of 12 utterances of train-clean-100 is longer than 300 frames"):
        module.setup()


def test_broken_audio_names_the_file(librispeech, tmp_path):
    broken = tmp_path / "broken.flac"
    whole = (librispeech / "train-clean-100/27/198/27-198-0000.flac").read_bytes()
    broken.write_bytes(whole[:30])
    with pytest.raises(EncoreError, match=r"broken\.flac: not a readable audio file"):
        AudioSegments(tmp_path, ["broken.flac"], "mel")[0]


def test_cpc_split_and_alignments(librispeech, tmp_path):
    labels = librispeech / "labels"
    split = read_split(labels)
    assert [len(split[part]) for part in ("train", "dev", "test")] == [9, 1, 2]
    lines = (labels / "train_split.txt").read_text().splitlines(keepends=True)
    random.seed(1337)
    random.shuffle(lines)  # the released procedure
    assert split["train"] + split["dev"] == [line.strip() for line in lines]
    found = read_alignments(labels / "converted_aligned_phones.txt")
    assert found["27-198-0003"][:11].tolist() == [3] * 10 + [4]
    broken = tmp_path / "phones.txt"
    for text in ("a 1 2\nb 3 41\n", "a 1 2\nb 3 x\n", "a 1\nb\n"):
        broken.write_text(text)
        with pytest.raises(EncoreError, match=r"phones\.txt, line 2: expected `utterance-id`"):
            read_alignments(broken)
    with pytest.raises(EncoreError, match=r"test_split\.txt: cannot be read|train_split\.txt: cannot be read"):
        read_split(tmp_path)


def test_librispeech_probes_read_phones_and_speakers(librispeech, tmp_path):
    phones = LibriSpeechProbe(str(librispeech), str(librispeech / "labels"), batch_size=4)
    phones.setup()
    assert [len(batch) for batch in phones.train.batches] == [4, 4, 1]
    batch = next(iter(phones.test_dataloader()))
    assert batch["features"].shape == (2, 241, 80)
    assert batch["lengths"].tolist() == [241, 241]
    assert batch["labels"].shape == (2, 242)
    speakers = LibriSpeechProbe(
        str(librispeech), str(librispeech / "labels"), task="speaker", features="mfcc", batch_size=4
    )
    speakers.setup()
    batch = next(iter(speakers.test_dataloader()))
    assert batch["features"].shape[2] == 39
    assert sorted(batch["labels"].tolist()) == [0, 1]  # "103" sorts before "27"
    with pytest.raises(EncoreError, match="cannot be read"):
        LibriSpeechProbe(str(librispeech), str(tmp_path), batch_size=4).setup()
    (tmp_path / "train_split.txt").write_text("9-9-9999\n")
    (tmp_path / "test_split.txt").write_text("9-9-9999\n")
    with pytest.raises(EncoreError, match="no utterance of the train split"):
        LibriSpeechProbe(str(librispeech), str(tmp_path), batch_size=4, task="speaker").setup()


def test_keywords_are_drawn_equally_often_and_a_second_long(tmp_path):
    root = fixtures.commands(tmp_path)
    module = SpeechCommandsProbe(str(root / "train"), str(root / "test"), batch_size=32)
    module.setup()
    assert next(iter(module.test_dataloader()))["labels"].tolist() == [11, 10, 0]  # _silence_, _unknown_, yes
    batch = next(iter(module.val_dataloader()))
    assert sorted(batch["labels"].tolist()) == [0, 10, 11, 11, 11, 11]
    assert batch["lengths"].max() == 101  # one second of the recordings
    assert len(module.train) == 2 + 3 + 4
    torch.manual_seed(0)
    counts = torch.bincount(torch.stack([module.train[0][1] for _ in range(120)]), minlength=12)
    assert counts[[0, 10, 11]].min() > 25
    noise = module.train.dataset
    at = [path.parent.name for path in noise.paths].index("_background_noise_")
    assert not torch.equal(noise[at][0], noise[at][0])


def test_emodb_symbols_fold_to_phones():
    symbols = ["_t", "!t +asp", "E6", "l", "a 2", "-lar", "tasp", "n +sil", "+hoe", "aI +lar 3", "I+nas", "(gef", "."]
    folded = ["t", "t", "E6", "l", "a", "a", "t", "n", "n", "aI", "I", "", "."]
    assert fold_phones(symbols) == folded
    assert fold_phones(["+beh", "!"]) == ["", ""]


def test_frame_labels_begin_at_their_segments_time():
    labels = phone_labels(["_t", "a", "E6", "."], [0.02, 0.05, 0.081, 0.1], 12)
    names = ["-" if label == data.IGNORED else PHONES[label] for label in labels.tolist()]
    assert names == ["-", "-", "t", "t", "t", "a", "a", "a", "a", "-", ".", "."]
    assert (phone_labels([], [], 4) == data.IGNORED).all()
    assert len(set(PHONES)) == 44


def test_folds_hold_out_a_man_and_a_woman_and_three_sentences():
    people = [name for pair in SPEAKERS for name in pair]
    clips = [(who, text) for who in people for text in TEXTS]
    who, text = zip(*clips)
    seen_people, seen_texts = [], []
    for fold in range(5):
        held = held_out(who, text, fold)
        assert held.speaker.sum() == 20
        assert held.text.sum() == 30
        seen_people += sorted({w for w, h in zip(who, held.speaker) if h})
        seen_texts += sorted({t for t, h in zip(text, held.text) if h})
    assert sorted(seen_people) == sorted(people)
    assert set(seen_texts) == set(TEXTS)
    assert (held_out(who, text, 7).speaker == held_out(who, text, 2).speaker).all()


def test_generated_sounds_are_split_and_validated_in_the_same_way_every_time():
    module = InMemory("sounds", num_clips=10, batch_size=2)
    module.setup()
    assert [len(batch) for batch in module.train.batches] == [2] * 4
    first, again = next(iter(module.val_dataloader())), next(iter(module.val_dataloader()))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert first["inputs"].shape == (2, 101, 80)


def test_every_class_of_generated_sounds_is_trained_on_and_held_out(monkeypatch):
    monkeypatch.setattr("papers.tera.data.extract", lambda waveform, kind: waveform[:100, None])
    module = InMemory("sounds", num_clips=50, batch_size=2)
    module.setup()
    clips = SoundClips(50, seconds=1.0, sample_rate=16000)
    for part, each in ((module.train, 4), (module.valid, 1)):
        inside = [clip for i in range(len(part)) for clip in part[i]]
        classes = [label for wave, label in clips if any(torch.equal(wave[:100, None], clip) for clip in inside)]
        assert sorted(classes) == sorted(list(range(10)) * each)


@requires_mirror("emodb")
def test_emodb_pauses_are_quiet_and_phones_are_held_out_by_speaker_and_sentence():
    clips = corpora.EmoDBClips()
    labels, level = torch.cat(clips.phones), torch.cat([x.mean(dim=1) for x in clips.features])
    assert level[labels == PHONES.index(".")].mean() < -1.2  # in deviations; -0.5 when the times are taken as ends
    assert level[labels == PHONES.index("a")].mean() > 0.3
    assert torch.bincount(labels[labels >= 0], minlength=44).min() > 100
    assert 0.05 < (labels < 0).float().mean() < 0.12
    held = held_out(clips.speakers, clips.texts, 0)
    assert (held.speaker & held.text).sum() == 32
    assert features.DIMENSIONS["mel"] == clips.features[0].shape[1]


@requires_mirror("fsdd")
def test_fsdd_holds_a_speaker_out(monkeypatch):
    read = tables.read_table
    every_50th = lambda path: {name: column[::50] for name, column in read(path).items()}  # noqa: E731
    monkeypatch.setattr(tables, "read_table", every_50th)
    waves, columns = data.load_source("fsdd")
    assert len(waves) == 60
    probe = corpora.FSDDProbe(fold=1, batch_size=32)
    probe.setup()
    sizes = [sum(map(len, part.batches)) for part in (probe.train, probe.valid, probe.test) if part]
    assert sum(sizes) == 60
    assert sizes[2] == sum(name == "jackson" for name in columns["speaker"])


def test_altered_batches_pad_with_zeros():
    off = Policy(time=0.0, frequency=0.0, noise=0.0)
    batch = altered_batch([torch.ones(5, 3), torch.ones(8, 3)], off)
    assert batch["lengths"].tolist() == [5, 8]
    assert not batch["targets"][0, 5:].any()
    assert torch.equal(batch["inputs"], batch["targets"])
