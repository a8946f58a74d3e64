"""BEATs on Speech Commands V1 (12 classes) and IEMOCAP in their on-disk formats, and ensembles."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from common.errors import EncoreError
from common.training import cli
from papers.beats import ensemble, interop
from papers.beats.data import AudioSetData, spectrogram
from papers.beats.model import AudioClassifier, Encoder
from papers.beats.module import FineTuneModule
from papers.beats.protocols import COMMANDS, EMOTIONS, IEMOCAP, SpeechCommandsV1, read_emotions

STACK = {"num_heads": 2, "mlp_dim": 24, "conv_kernel": 4, "conv_groups": 2}
ENCODER = {"patch_size": 16, "patch_dim": 8, "dim": 16, "depth": 1, **STACK}
CONFIGS = Path(__file__).parents[3] / "papers/beats/configs"
RNG = np.random.default_rng(0)

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
ANNOTATORS = "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"


def wav(path, samples=4000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * RNG.standard_normal(samples), 16000)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Four words of three clips each, one background recording of 2.5 s, and the two lists."""
    root = tmp_path_factory.mktemp("commands")
    for word in ("yes", "go", "bed", "zero"):
        for i in range(3):
            wav(root / word / f"{i}.wav")
    wav(root / "_background_noise_" / "hum.wav", 40000)
    (root / "validation_list.txt").write_text("yes/1.wav\nbed/1.wav\n")
    (root / "testing_list.txt").write_text("go/2.wav\nzero/2.wav\n")
    return root


@pytest.fixture(scope="module")
def test_archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("test_archive")
    for folder in ("_silence_", "_unknown_", "go"):
        wav(root / folder / "0.wav")
    return root


def served(clips, root):
    """{file below root: class name} of a part, whether its labels are classes or one-hot."""
    labels = clips.labels if clips.labels.dim() == 1 else clips.labels.argmax(1)
    return {p.relative_to(root).as_posix(): COMMANDS[label] for p, label in zip(clips.paths, labels, strict=True)}


NOISE = {"_background_noise_/hum.wav": "silence"}


def test_the_lists_split_words_into_twelve_classes_and_all_else_is_training(commands):
    data = SpeechCommandsV1(str(commands), num_mel_bins=16, num_workers=0)
    data.setup()
    assert served(data.val_set, commands) == {"yes/1.wav": "yes", "bed/1.wav": "unknown"} | NOISE
    assert served(data.test_set, commands) == {"go/2.wav": "go", "zero/2.wav": "unknown"} | NOISE
    train = served(data.train_set, commands)
    assert len(train) == 9
    assert train["yes/2.wav"] == "yes"  # in no list
    assert train["zero/0.wav"] == "unknown"
    assert not train.keys() & {"yes/1.wav", "bed/1.wav", "go/2.wav", "zero/2.wav"}
    assert [COMMANDS.index(name) for name in ("yes", "go", "unknown", "silence")] == [0, 9, 10, 11]


def test_the_official_test_archive_replaces_the_testing_list_whose_clips_stay_out_of_training(commands, test_archive):
    data = SpeechCommandsV1(str(commands), test_root=str(test_archive), num_mel_bins=16, num_workers=0)
    data.setup()
    expected = {"_silence_/0.wav": "silence", "_unknown_/0.wav": "unknown", "go/0.wav": "go"}
    assert served(data.test_set, test_archive) == expected
    assert not served(data.train_set, commands).keys() & {"go/2.wav", "zero/2.wav"}


def test_held_out_names_the_part_that_validation_measures(commands):
    parts = {}
    for part in ("validation", "test"):
        data = SpeechCommandsV1(str(commands), held_out=part, num_mel_bins=16, batch_size=8, num_workers=0)
        data.setup()
        parts[part] = next(iter(data.val_dataloader()))["label"].tolist()
        assert next(iter(data.test_dataloader()))["label"].tolist() == [9, 10, 11]
    assert parts == {"validation": [10, 0, 11], "test": [9, 10, 11]}  # bed, yes, silence; go, zero, silence


def test_silence_is_a_random_second_in_training_and_the_first_elsewhere(commands):
    data = SpeechCommandsV1(str(commands), num_mel_bins=16, num_workers=0)
    data.setup()
    hum = torch.from_numpy(soundfile.read(commands / "_background_noise_" / "hum.wav", dtype="float32")[0])
    assert torch.equal(data.val_set[2][0], spectrogram(hum[:16000], 16))
    data.train_set.cumulative = None  # no drawing anew: item by item
    at = [path.name for path in data.train_set.paths].index("hum.wav")
    torch.manual_seed(0)
    (a, label), (b, _) = data.train_set[at], data.train_set[at]
    assert a.shape == b.shape == (98, 16)
    assert not torch.equal(a, b)
    assert label.tolist() == [0.0] * 11 + [1.0]


def test_training_draws_all_classes_equally_often(commands, monkeypatch):
    data = SpeechCommandsV1(str(commands), num_mel_bins=16, num_workers=0)
    data.setup()
    monkeypatch.setattr("papers.beats.data.load_audio", lambda path, rate: (torch.zeros(400), rate))
    torch.manual_seed(0)
    drawn = Counter(int(data.train_set[0][1].argmax()) for _ in range(600))
    # 2 yes, 2 go, 4 unknown, 1 silence
    assert set(drawn) == {0, 9, 10, 11}
    assert all(count / 600 == pytest.approx(0.25, abs=0.06) for count in drawn.values())


def test_missing_or_foreign_lists_and_folders_are_errors_that_name_the_file(commands, tmp_path):
    wav(tmp_path / "yes" / "0.wav")
    with pytest.raises(EncoreError, match=r"validation_list\.txt: cannot be read"):
        SpeechCommandsV1(str(tmp_path)).setup()
    (tmp_path / "validation_list.txt").write_text("yes/0.wav\n")
    with pytest.raises(EncoreError, match=r"testing_list\.txt: cannot be read"):
        SpeechCommandsV1(str(tmp_path)).setup()
    (tmp_path / "testing_list.txt").write_text("no/0.wav\n")
    with pytest.raises(EncoreError, match=r"testing_list\.txt: names no clip"):
        SpeechCommandsV1(str(tmp_path)).setup()
    (tmp_path / "testing_list.txt").write_text("yes/0.wav\n")
    with pytest.raises(EncoreError, match=r"no _background_noise_/\*\.wav there"):
        SpeechCommandsV1(str(tmp_path)).setup()
    wav(tmp_path / "_background_noise_" / "hum.wav")
    with pytest.raises(EncoreError, match="no clip is left to train on"):
        SpeechCommandsV1(str(tmp_path)).setup()
    with pytest.raises(EncoreError, match=r"nothing: no \*/\*\.wav there"):
        SpeechCommandsV1(str(commands), test_root=str(tmp_path / "nothing")).setup()


CODES = ("ang", "hap", "exc", "neu", "sad", "fru", "xxx")


def line(utterance, emotion):
    return f"[6.2901 - 8.2357]\t{utterance}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n"


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory):
    """Five sessions of one dialogue with an utterance of each code; utterances of left-out codes have no recording."""
    root = tmp_path_factory.mktemp("iemocap")
    for session in range(1, 6):
        folder, dialogue = root / f"Session{session}", f"Ses0{session}F_impro01"
        text = HEADER
        for i, code in enumerate(CODES):
            text += line(f"{dialogue}_F{i:03d}", code) + ANNOTATORS
            if code not in ("fru", "xxx"):
                wav(folder / "sentences" / "wav" / dialogue / f"{dialogue}_F{i:03d}.wav", 4000 + 200 * i)
        table = folder / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
        table.parent.mkdir(parents=True)
        table.write_text(text)
        (table.parent / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07")  # the release holds such files
    return root


def test_four_emotions_with_excited_as_happy_and_one_session_left_out(iemocap):
    data = IEMOCAP(str(iemocap), fold=3, num_mel_bins=16, num_workers=0)
    data.setup()
    test = {p.stem: EMOTIONS[label] for p, label in zip(data.test_set.paths, data.test_set.labels, strict=True)}
    of = ("ang", "hap", "hap", "neu", "sad")
    assert test == {f"Ses03F_impro01_F{i:03d}": emotion for i, emotion in enumerate(of)}
    train, validation = set(data.train_set.paths), set(data.val_set.paths)
    assert (len(train), len(validation)) == (16, 4)
    assert not train & validation
    assert {path.stem[:5] for path in train | validation} == {"Ses01", "Ses02", "Ses04", "Ses05"}
    labels = torch.cat([data.train_set.labels, data.val_set.labels])
    assert torch.bincount(labels).tolist() == [4, 8, 4, 4]
    for path, label in zip(data.train_set.paths, data.train_set.labels, strict=True):
        assert of[int(path.stem[-1])] == EMOTIONS[label]  # shuffled together with its label


def test_the_validation_part_is_the_same_in_every_run_and_another_for_another_seed(iemocap):
    parts = []
    for seed in (0, 0, 1):
        data = IEMOCAP(str(iemocap), split_seed=seed)
        data.setup()
        parts.append([path.stem for path in data.val_set.paths])
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


def test_what_is_missing_of_iemocap_is_named(iemocap, tmp_path):
    with pytest.raises(EncoreError, match=r"fold 6: IEMOCAP has sessions 1 to 5"):
        IEMOCAP(str(iemocap), fold=6).setup()
    with pytest.raises(EncoreError, match=r"Session1/dialog/EmoEvaluation: no \*\.txt"):
        IEMOCAP(str(tmp_path)).setup()
    with pytest.raises(EncoreError, match=r"validation_share 0\.0: leaves 0 of 20"):
        IEMOCAP(str(iemocap), validation_share=0.0).setup()
    table = tmp_path / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    table.parent.mkdir(parents=True)
    table.write_text(HEADER)
    with pytest.raises(EncoreError, match=r"Ses01F_impro01\.txt: holds no turn"):
        IEMOCAP(str(tmp_path)).setup()
    table.write_text(line("Ses01F_impro01_F000", "sad"))
    with pytest.raises(EncoreError, match=r"wav/Ses01F_impro01/Ses01F_impro01_F000\.wav: no such recording"):
        IEMOCAP(str(tmp_path)).setup()


def shrunk(name, roots, tmp_path):
    """A paper config with sizes made tiny and its files pointed at a fixture; only its path is returned."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    torch.manual_seed(0)
    interop.save(Encoder(**ENCODER), tmp_path / "encoder.pt")
    config["model"]["init_args"]["checkpoint"] = str(tmp_path / "encoder.pt")
    config["data"]["init_args"] |= {"batch_size": 2, "num_workers": 0} | roots
    config["trainer"] |= {"max_steps": 1, "default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "devices": 1}
    config["trainer"] |= {
        "strategy": "auto",
        "precision": "bf16-mixed",
        "val_check_interval": 1,
        "log_every_n_steps": 1,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config | {"checkpoint_every": 1}))
    return path


@pytest.mark.parametrize("name", ["paper_ks1", "paper_iemocap"])
def test_a_paper_config_takes_a_step_and_its_best_checkpoint_is_tested(name, commands, test_archive, iemocap, tmp_path):
    ks1 = {"root": str(commands), "test_root": str(test_archive)}
    path = shrunk(name, ks1 if name == "paper_ks1" else {"root": str(iemocap)}, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli.run(["fit", "--config", str(path)])
        logged = (tmp_path / "run" / "metrics.csv").read_text()
        best = str(tmp_path / "run" / "checkpoints" / "best.ckpt")
        tested = ["--ckpt_path", best, "--data.init_args.held_out", "test"]
        command = cli.run(["validate", "--config", str(path), *tested])
    assert "train/loss" in logged
    assert "val/accuracy" in logged
    accuracy = float(command.trainer.callback_metrics["val/accuracy"])
    assert ensemble.run(["--config", str(path), best]) == ("accuracy", pytest.approx(accuracy))


def member(path, seed, **changes):
    """A checkpoint of a fine-tuning as the trainer writes it, with random weights; its classifier."""
    torch.manual_seed(seed)
    module = FineTuneModule(**({"num_classes": 12, "objective": "ce", "encoder": ENCODER} | changes))
    with torch.no_grad():
        module.model.head.weight.normal_(std=1.0 + 2 * seed)  # members of unlike confidence
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(state, path)
    return module.model.eval()


def loader_of(data):
    data.setup()
    return data.test_dataloader()


@pytest.mark.parametrize("objective", ["ce", "bce"])
def test_an_ensemble_is_the_mean_of_probabilities_and_not_of_logits(objective, commands, tmp_path):
    paths = [tmp_path / f"{seed}.ckpt" for seed in (0, 1)]
    models = [member(path, seed, objective=objective) for seed, path in enumerate(paths)]
    loader = loader_of(SpeechCommandsV1(str(commands), batch_size=2, num_workers=0))
    ours, labels, multilabel = ensemble.average(paths, loader)
    to_probabilities = torch.sigmoid if objective == "bce" else lambda logits: logits.softmax(-1)
    with torch.no_grad():
        logits = [torch.cat([m(b["spectrogram"], ensemble.batch_padding(b, 16)) for b in loader]) for m in models]
    tables = [to_probabilities(x) for x in logits]
    torch.testing.assert_close(ours, (tables[0] + tables[1]) / 2)
    assert (ours - to_probabilities((logits[0] + logits[1]) / 2)).abs().max() > 0.02
    assert multilabel is (objective == "bce")
    assert labels.tolist() == [9, 10, 11]
    alone, _, _ = ensemble.average(paths[1:], loader)
    torch.testing.assert_close(alone, tables[1])


def test_scores_are_macro_map_or_accuracy():
    probabilities = torch.tensor([[0.9, 0.2], [0.8, 0.6], [0.1, 0.4]])
    # class 0: the positives are ranked 1 and 3; class 1: the one positive is ranked second
    truths = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    expected = ((1 + 2 / 3) / 2 + 1 / 2) / 2
    assert ensemble.score(probabilities, truths, True) == ("mAP", pytest.approx(expected))
    assert ensemble.score(probabilities, torch.tensor([0, 0, 0]), False) == ("accuracy", pytest.approx(2 / 3))


def test_an_ensemble_on_audioset_files_gives_map(tmp_path, capsys):
    (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/0a,Bark\n1,/m/0b,Rain\n")
    for folder in ("unbalanced_train", "eval"):
        rows = "".join(f'clip-{i}, 0.000, 10.000, "{mid}"\n' for i, mid in enumerate(("/m/0a", "/m/0b")))
        (tmp_path / f"{folder.removesuffix('_train')}{'_train' * (folder != 'eval')}_segments.csv").write_text(rows)
        for i in range(2):
            wav(tmp_path / folder / f"clip-{i}.wav", 8000)
    paths = [str(tmp_path / f"{seed}.ckpt") for seed in (0, 1)]
    for seed, path in enumerate(paths):
        member(path, seed, num_classes=2, objective="bce")
    overrides = ["--data.init_args.root", str(tmp_path), "--data.init_args.num_workers", "0"]
    name, value = ensemble.run(["--config", str(CONFIGS / "paper_finetune.yaml"), *paths, *overrides])
    assert name == "mAP"
    data = AudioSetData(str(tmp_path), num_workers=0)
    data.setup()
    probabilities, truths, _ = ensemble.average(paths, data.val_dataloader())
    assert truths.tolist() == [[1, 0], [0, 1]]
    # two clips a class, one of them positive: its precision is 1 when it ranks first, else 1/2
    ranked_first = (probabilities.diagonal() > probabilities.flip(0).diagonal()).double()
    assert value == pytest.approx((0.5 + ranked_first / 2).mean().item())
    assert "of 2 models" in capsys.readouterr().out


def test_bad_members_and_configs_are_errors_that_name_the_file(commands, tmp_path):
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    member(first, 0)
    member(second, 1, num_classes=5)
    loader = loader_of(SpeechCommandsV1(str(commands), batch_size=2, num_workers=0))
    with pytest.raises(EncoreError, match=r"second\.ckpt: has 5 exclusive classes, but .*first\.ckpt has 12"):
        ensemble.average([first, second], loader)
    with pytest.raises(EncoreError, match="at least one checkpoint"):
        ensemble.average([], loader)
    with pytest.raises(EncoreError, match=r"none\.ckpt: no such checkpoint"):
        ensemble.average([tmp_path / "none.ckpt"], loader)
    torch.save({"state_dict": AudioClassifier(Encoder(**ENCODER), 12).state_dict(), "hyper_parameters": {}}, second)
    with pytest.raises(EncoreError, match=r"second\.ckpt: holds no classifier"):
        ensemble.average([second], loader)
    with pytest.raises(EncoreError, match="do not fit the data's labels"):
        ensemble.score(*ensemble.average([first], loader)[:2], True)
    with pytest.raises(EncoreError, match="--device quantum: there is no such device"):
        ensemble.run(["--config", "none.yaml", str(first), "--device", "quantum"])
    with pytest.raises(EncoreError, match=r"none\.yaml: cannot be read"):
        ensemble.data_module(tmp_path / "none.yaml")
    config = tmp_path / "config.yaml"
    config.write_text("data: {class_path: os.system}")
    with pytest.raises(EncoreError, match=r"config\.yaml: names no data module"):
        ensemble.data_module(config)
    config.write_text("data: {class_path: papers.beats.protocols.IEMOCAP, init_args: {rooot: x}}")
    with pytest.raises(EncoreError, match=r"config\.yaml: .*rooot"):
        ensemble.data_module(config)
