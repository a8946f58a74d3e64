"""Tiny sets in the formats the stages read, for tests and for a first try: AudioSet, ESC-50, Speech Commands, IEMOCAP;
and released files of tiny models."""

from pathlib import Path
from typing import Any

import torch

from common.formats import tiny as write
from papers.beats import interop
from papers.beats.model import AudioClassifier, Encoder
from papers.beats.tokenizers import DistilledTokenizer

STACK = {"num_heads": 2, "mlp_dim": 24, "conv_kernel": 4, "conv_groups": 2}
LAYER = {"depth": 1, **STACK}  # label predictor and estimator
ENCODER = {"patch_size": 16, "patch_dim": 8, "dim": 16, "depth": 2, **STACK}
CODES = {"model.init_args.num_codes": 6, "model.init_args.code_dim": 4}
TURN = "[6.2901 - 8.2357]\t{}\t{}\t[2.5000, 2.5000, 2.5000]\n"
HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
ANNOTATORS = "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
EMOTION_CODES = ("ang", "hap", "exc", "neu", "sad", "fru", "xxx")


def model(kind: str) -> Any:
    """A random encoder, classifier (of 5) or tokenizer of tiny size, in eval mode."""
    torch.manual_seed(0)
    made: Any = Encoder(**ENCODER)
    if kind == "classifier":
        made = AudioClassifier(made, 5)
    elif kind == "tokenizer":
        made = DistilledTokenizer(made, num_codes=7, code_dim=4)
    with torch.no_grad():
        for tensor in [*made.parameters(), *made.buffers()]:
            tensor.normal_()
    return made.eval()


def released(path: Path, kind: str) -> Path:
    """A released file of `model(kind)`."""
    interop.save(model(kind), path)
    return path


def audioset(root: Path) -> dict[str, Any]:
    """Four clips of 0.5 to 0.2 s in each of two folders (names with and without the Y), three classes; one listed clip
    has no file."""
    (root / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/0a,"Bark, dog"\n1,/m/0b,Rain\n2,/t/0c,Clock\n'
    )
    labels = ["/m/0a", "/m/0a,/m/0b", "/m/0a", "/t/0c", "/m/0a"]
    lines = ["# Segments csv created for a test", "# YTID, start_seconds, end_seconds, positive_labels"]
    lines += [f'clip-{i}, 30.000, 40.000, "{label}"' for i, label in enumerate(labels)]
    (root / "segments.csv").write_text("\n".join(lines) + "\n")
    for folder in ("audio", "eval"):
        for i in range(4):
            write.wav(root / folder / f"{'Y' if i == 1 else ''}clip-{i}.wav", 8000 - 1600 * i, seed=i)
    files = {"train_csv": "segments.csv", "train_audio": "audio", "eval_csv": "segments.csv", "eval_audio": "eval"}
    files |= {"root": str(root)}
    return {f"data.init_args.{key}": value for key, value in files.items()} | {"data.init_args.batch_size": 2}


def iteration1(root: Path) -> dict[str, Any]:
    sizes = {"model.init_args.encoder": ENCODER, "model.init_args.predictor": LAYER, **CODES}
    return audioset(root) | sizes | {"model.init_args.optim.warmup": 1}


def iteration2(root: Path) -> dict[str, Any]:
    return iteration1(root) | {"model.init_args.tokenizer": released(root / "tokenizer.pt", "tokenizer")}


def tokenizer(root: Path) -> dict[str, Any]:
    sizes = {"model.init_args.encoder": ENCODER, "model.init_args.estimator": LAYER, **CODES}
    return audioset(root) | sizes | {"model.init_args.teacher": released(root / "teacher.pt", "encoder")}


def _fine_tuned(root: Path, data: dict[str, Any]) -> dict[str, Any]:
    start = {"model.init_args.checkpoint": released(root / "encoder.pt", "encoder"), "data.init_args.batch_size": 2}
    return start | {f"data.init_args.{key}": value for key, value in data.items()} | {"trainer.val_check_interval": 1}


def fine_tuning(root: Path) -> dict[str, Any]:
    return _fine_tuned(root, {}) | audioset(root) | {"model.init_args.num_classes": 3}


def esc50(root: Path) -> dict[str, Any]:
    """Six clips in three folds."""
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for i in range(6):
        write.wav(root / "audio" / f"{i}.wav", 4000, seed=i)
        rows.append(f"{i}.wav,{1 + i % 3},{i},x,False,0,A")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(rows))
    return _fine_tuned(root, {"root": root})


def commands(root: Path) -> Path:
    """Four words of three clips each, one background recording of 2.5 s, and the two lists."""
    for word in ("yes", "go", "bed", "zero"):
        for i in range(3):
            write.wav(root / word / f"{i}.wav", 4000, seed=i)
    write.wav(root / "_background_noise_" / "hum.wav", 40000)
    (root / "validation_list.txt").write_text("yes/1.wav\nbed/1.wav\n")
    (root / "testing_list.txt").write_text("go/2.wav\nzero/2.wav\n")
    return root


def command_test(root: Path) -> Path:
    """The official test archive: a folder a class."""
    for folder in ("_silence_", "_unknown_", "go"):
        write.wav(root / folder / "0.wav", 4000)
    return root


def twelve(root: Path) -> dict[str, Any]:
    return _fine_tuned(root, {"root": commands(root / "train"), "test_root": command_test(root / "test")})


def words(root: Path) -> dict[str, Any]:
    return _fine_tuned(root, {"root": commands(root / "train")})


def emotions(root: Path) -> Path:
    """Five sessions of one dialogue with an utterance of each code; utterances of left-out codes have no recording."""
    for session in range(1, 6):
        folder, dialogue = root / f"Session{session}", f"Ses0{session}F_impro01"
        text = HEADER
        for i, code in enumerate(EMOTION_CODES):
            text += TURN.format(f"{dialogue}_F{i:03d}", code) + ANNOTATORS
            if code not in ("fru", "xxx"):
                write.wav(folder / "sentences" / "wav" / dialogue / f"{dialogue}_F{i:03d}.wav", 4000 + 200 * i, seed=i)
        table = folder / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
        table.parent.mkdir(parents=True)
        table.write_text(text)
        (table.parent / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07")  # the release holds such files
    return root


def sessions(root: Path) -> dict[str, Any]:
    return _fine_tuned(root, {"root": emotions(root / "IEMOCAP_full_release")})


FIXTURES = {
    "paper_iter1.yaml": iteration1,
    "paper_iter2.yaml": iteration2,
    "paper_tokenizer.yaml": tokenizer,
    "paper_finetune_esc50.yaml": esc50,
    "paper_finetune_ks2.yaml": words,
    "paper_ks1.yaml": twelve,
    "paper_iemocap.yaml": sessions,
    "paper_finetune*.yaml": fine_tuning,
}
META = {
    "paper_iter2.yaml": {"model.init_args.tokenizer": "random"},
    "paper_tokenizer.yaml": {"model.init_args.teacher": {"class_path": "papers.beats.model.Encoder"}},
}


def tiny() -> tuple[dict[str, Any], torch.Tensor]:
    """A module as a config describes it, and a batch for the encoder that is exported from it."""
    arguments = {"encoder": ENCODER, "predictor": LAYER, "num_codes": 8, "code_dim": 4, "optim": {"lr": 1e-3}}
    return {"class_path": "papers.beats.module.PretrainModule", "init_args": arguments}, torch.randn(3, 1, 48, 32)
