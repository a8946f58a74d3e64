"""BEATs' front end, data modules in their on-disk formats, released weight files, and a step of every paper config."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from common.errors import EncoreError
from common.training import cli
from papers.beats import interop
from papers.beats.data import (
    AudioSetData,
    Crops,
    ESC10Data,
    ESC50Data,
    SpeechCommandsData,
    WaveClips,
    num_frames,
    pad_batch,
    read_classes,
    read_segments,
    spectrogram,
)
from papers.beats.model import FBANK_MEAN, FBANK_STD, AudioClassifier, Encoder
from papers.beats.tokenizers import DistilledTokenizer
from tests.helpers import requires_mirror

STACK = {"num_heads": 2, "mlp_dim": 24, "conv_kernel": 4, "conv_groups": 2}
ENCODER = {"patch_size": 16, "patch_dim": 8, "dim": 16, "depth": 2, **STACK}
CONFIGS = Path(__file__).parents[3] / "papers/beats/configs"


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
    """Six half-second clips, three classes, in AudioSet's format; one listed clip has no file."""
    root = tmp_path_factory.mktemp("audioset")
    (root / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/0a,"Bark, dog"\n1,/m/0b,Rain\n2,/t/0c,Clock\n'
    )
    lines = [
        "# Segments csv created for a test",
        "# num_ytids=5",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    labels = ["/m/0a", "/m/0a,/m/0b", "/m/0a", "/t/0c", "/m/0a"]
    rng = np.random.default_rng(0)
    for folder in ("audio", "eval"):
        (root / folder).mkdir()
        for i, label in enumerate(labels):
            prefix = "Y" if i == 1 else ""
            if i < 4:
                soundfile.write(
                    root / folder / f"{prefix}clip-{i}.wav", 0.1 * rng.standard_normal(8000 - 1600 * i), 16000
                )
            if folder == "audio":
                lines.append(f'clip-{i}, 30.000, 40.000, "{label}"')
    (root / "segments.csv").write_text("\n".join(lines) + "\n")
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
        train: WaveClips([path], torch.eye(1), seconds=0.2, num_mel_bins=16, train=train) for train in (True, False)
    }
    start = torch.from_numpy(soundfile.read(path, dtype="float32")[0][:3200])
    assert torch.equal(clips[False][0][0], spectrogram(start, 16))
    torch.manual_seed(0)
    a, b = clips[True][0][0], clips[True][0][0]
    assert a.shape == b.shape == (18, 16)
    assert not torch.equal(a, b)


def test_balanced_sampling_draws_rare_classes_as_often_as_common_ones(monkeypatch):
    labels = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    clips = WaveClips([Path(str(i)) for i in range(10)], labels, seconds=1, num_mel_bins=8, train=True, balance=True)
    monkeypatch.setattr("papers.beats.data.load_audio", lambda path, rate: (torch.zeros(400), rate))
    torch.manual_seed(0)
    rare = sum(clips[0][1][1].item() for _ in range(400)) / 400
    assert rare == pytest.approx(0.5, abs=0.08)


def test_esc50_holds_one_fold_out(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "audio").mkdir()
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for i in range(6):
        soundfile.write(tmp_path / "audio" / f"{i}.wav", np.full(800, 0.1), 16000)
        rows.append(f"{i}.wav,{1 + i % 3},{i},x,False,0,A")
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(rows))
    data = ESC50Data(str(tmp_path), fold=2, num_mel_bins=16, num_workers=0)
    data.setup()
    assert [int(data.val_set[i][1]) for i in range(2)] == [1, 4]
    assert len(data.train_set) == 4
    with pytest.raises(EncoreError, match="no clip in fold 7"):
        ESC50Data(str(tmp_path), fold=7).setup()


def test_speech_commands_hold_the_testing_list_out_and_leave_the_validation_list_aside(tmp_path):
    for word in ("yes", "no", "_background_noise_"):
        (tmp_path / word).mkdir()
        for i in range(3):
            soundfile.write(tmp_path / word / f"{i}.wav", np.full(800, 0.1), 16000)
    (tmp_path / "testing_list.txt").write_text("yes/0.wav\nno/1.wav\n")
    (tmp_path / "validation_list.txt").write_text("yes/2.wav\n")
    data = SpeechCommandsData(str(tmp_path), num_mel_bins=16, num_workers=0)
    data.setup()
    assert [path.relative_to(tmp_path).as_posix() for path in data.val_set.paths] == ["no/1.wav", "yes/0.wav"]
    assert data.val_set.labels.tolist() == [0, 1]
    assert len(data.train_set) == 3
    (tmp_path / "testing_list.txt").write_text("")
    with pytest.raises(EncoreError, match="no clips to train or to test on"):
        data.setup()


def test_a_clip_shorter_than_a_crop_is_an_error():
    with pytest.raises(EncoreError, match="clip 1 has 7 frames, fewer than a crop of 8"):
        Crops([torch.zeros(9, 4), torch.zeros(7, 4)], torch.tensor([0, 1]), 8)


def random_model(kind):
    torch.manual_seed(0)
    encoder = Encoder(**ENCODER)
    model = {
        "encoder": lambda: encoder,
        "classifier": lambda: AudioClassifier(encoder, 5),
        "tokenizer": lambda: DistilledTokenizer(encoder, num_codes=7, code_dim=4),
    }[kind]()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.normal_()
    return model.eval()


def released_names(depth):
    """Tensor names of a released encoder file, written out from the public class (not derived from our mapping)."""
    names = {"patch_embedding.weight", "post_extract_proj.weight", "post_extract_proj.bias"}
    names |= {f"{part}layer_norm.{kind}" for part in ("", "encoder.") for kind in ("weight", "bias")}
    names |= {f"encoder.pos_conv.0.{kind}" for kind in ("bias", "weight_g", "weight_v")}
    for i in range(depth):
        layer = f"encoder.layers.{i}."
        parts = [f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj", "grep_linear")]
        parts += ["self_attn_layer_norm", "fc1", "fc2", "final_layer_norm"]
        names |= {f"{layer}{part}.{kind}" for part in parts for kind in ("weight", "bias")}
        names |= {f"{layer}self_attn.grep_a", f"{layer}self_attn.relative_attention_bias.weight"}
    return names


EXTRA = {
    "encoder": set(),
    "classifier": {"predictor.weight", "predictor.bias"},
    "tokenizer": {f"quantize_layer.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    | {f"quantize.embedding.{name}" for name in ("weight", "cluster_size", "embed_avg", "initted")}
    | {"quantize.cluster_size"},
}


@pytest.mark.parametrize("kind", ["encoder", "classifier", "tokenizer"])
def test_released_files_are_written_and_read_back(kind, tmp_path):
    model, path = random_model(kind), tmp_path / "model.pt"
    interop.save(model, path)
    content = torch.load(path, weights_only=True)
    assert set(content["model"]) == released_names(2) | EXTRA[kind]
    assert content["model"]["encoder.layers.1.self_attn.grep_a"].shape == (1, 2, 1, 1)
    assert content["model"]["encoder.pos_conv.0.weight_g"].shape == (1, 1, 4)
    assert content["cfg"]["encoder_embed_dim"] == 16
    load = interop.load_tokenizer if kind == "tokenizer" else interop.load_encoder
    again = load(path)
    assert not again.training
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    interop.save(again, tmp_path / "again.pt")
    second = torch.load(tmp_path / "again.pt", weights_only=True)
    assert all(torch.equal(value, second["model"][name]) for name, value in content["model"].items())


def test_files_of_another_kind_size_or_design_are_clear_errors(tmp_path):
    path = tmp_path / "model.pt"
    interop.save(random_model("encoder"), path)
    with pytest.raises(EncoreError, match="holds an encoder, not a tokenizer"):
        interop.load_tokenizer(path)
    content = torch.load(path, weights_only=True)
    torch.save({"cfg": content["cfg"] | {"deep_norm": False}, "model": content["model"]}, path)
    with pytest.raises(EncoreError, match="cfg says deep_norm=False"):
        interop.load_encoder(path)
    torch.save({"cfg": content["cfg"] | {"encoder_ffn_embed_dim": 32}, "model": content["model"]}, path)
    with pytest.raises(EncoreError, match="other size: .*mlp"):
        interop.load_encoder(path)
    torch.save(content["model"], path)
    with pytest.raises(EncoreError, match="not in the released layout"):
        interop.load_encoder(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(EncoreError, match="not a readable checkpoint"):
        interop.load_encoder(path)


def shrink(config, audioset, tmp_path):
    """The paper's config with every size made tiny and its files pointed at the fixture."""
    init = config["model"]["init_args"]
    init["encoder"] = ENCODER
    kind = config["model"]["class_path"].rsplit(".", 1)[1]
    part = {"PretrainModule": "predictor", "TokenizerModule": "estimator"}.get(kind)
    if part:
        init[part] = {"depth": 1, **STACK}
    if "num_codes" in init:
        init |= {"num_codes": 6, "code_dim": 4}
    kinds = {"tokenizer": "tokenizer", "teacher": "encoder", "checkpoint": "encoder"}
    for key, kind in kinds.items():
        if isinstance(init.get(key), str) and init[key] != "random":
            interop.save(random_model(kind), tmp_path / f"{key}.pt")
            init[key] = str(tmp_path / f"{key}.pt")
    if "num_classes" in init:
        init["num_classes"] = 3
    data = config["data"]["init_args"]
    files = {"train_csv": "segments.csv", "train_audio": "audio", "eval_csv": "segments.csv", "eval_audio": "eval"}
    config["data"]["init_args"] = (
        data | files | {"root": str(audioset), "batch_size": 2, "num_workers": 0, "seconds": 0.5}
    )
    config["trainer"] |= {"max_steps": 1, "default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "devices": 1}
    config["trainer"] |= {"strategy": "auto", "num_nodes": 1, "precision": "bf16-mixed", "limit_val_batches": 1}
    config["trainer"] |= {"val_check_interval": 1, "log_every_n_steps": 1}
    config["checkpoint_every"] = 1
    return config


STAGES = ["paper_iter1", "paper_tokenizer", "paper_iter2", "paper_finetune"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_paper_config_takes_a_step_on_audioset_files_and_hands_its_weights_on(stage, audioset, tmp_path):
    config = shrink(yaml.safe_load((CONFIGS / f"{stage}.yaml").read_text()), audioset, tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli.run(["fit", "--config", str(path)])
    assert "train/loss" in (tmp_path / "run" / "metrics.csv").read_text()
    interop.export(tmp_path / "run" / "last.ckpt", tmp_path / "out.pt")
    load = interop.load_tokenizer if stage == "paper_tokenizer" else interop.load_encoder
    trained = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    prefix = {"paper_tokenizer": "tokenizer.", "paper_finetune": "model."}.get(stage, "encoder.")
    for name, value in load(tmp_path / "out.pt").state_dict().items():
        assert torch.equal(value, trained[prefix + name])


def test_other_configs_point_at_classes_that_take_their_arguments(tmp_path):
    for path in sorted(CONFIGS.glob("*.yaml")):
        if path.stem not in STAGES:
            config = yaml.safe_load(path.read_text())
            assert config["trainer"]["max_steps"] == config["model"]["init_args"]["total_steps"]


def test_the_smoke_config_runs_without_any_data_source(tmp_path, monkeypatch):
    monkeypatch.delenv("ENCORE_MIRROR", raising=False)
    monkeypatch.setenv("ENCORE_OFFLINE", "1")
    arguments = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps", "2"]
    cli.run(["fit", "--config", str(CONFIGS / "smoke.yaml"), *arguments])
    assert (tmp_path / "metrics.csv").read_text().count("\n") >= 2


def test_audioset_module_serves_padded_batches_of_the_held_out_list(audioset):
    data = AudioSetData(
        str(audioset),
        train_csv="segments.csv",
        train_audio="audio",
        eval_csv="segments.csv",
        eval_audio="eval",
        num_mel_bins=16,
        batch_size=4,
        num_workers=0,
    )
    with pytest.warns(UserWarning, match="skipped"):
        data.setup()
    batch = next(iter(data.val_dataloader()))
    assert batch["frames"].tolist() == [48, 38, 28, 18]
    assert batch["label"].sum().item() == 5


@requires_mirror("esc10")
def test_esc10_holds_out_one_of_five_folds():
    data = ESC10Data(fold=3, num_mel_bins=16)
    data.setup()
    assert (len(data.train_set), len(data.val_set)) == (320, 80)
    assert torch.bincount(data.val_set.labels).tolist() == [8] * 10
    spectrogram_, label = data.val_set[5]
    assert spectrogram_.shape == (128, 16)
    assert torch.equal(spectrogram_, data.val_set[5][0])  # the middle, not a random crop
    assert 0 <= label < 10
