"""Tiny sets in the formats TERA reads, for tests and for a first try: LibriSpeech with CPC's labels, stored fMLLR,
Speech Commands; and a released file of a tiny model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.formats import tiny as write
from papers.tera import interop
from papers.tera.model import TERA, Encoder

SUBSETS = ("train-clean-100", "train-clean-360", "train-other-500")
ENCODER = {"dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
BATCH = {"data.init_args.batch_size": 2}


def released(path: Path, input_dim: int = 80) -> Path:
    """A released file of a tiny model."""
    torch.manual_seed(0)
    interop.save(TERA(Encoder(input_dim, **ENCODER)), path)
    return path


def utterances(root: Path, subset: str = SUBSETS[0], samples: tuple[int, ...] = (33000, 33800, 34600, 35400)) -> Path:
    """root/<subset>/<speaker>/198/*.flac: of each of two speakers one utterance of every length."""
    for speaker in (103, 27):
        for i, length in enumerate(samples):
            write.wav(root / subset / str(speaker) / "198" / f"{speaker}-198-{i:04d}.flac", length + speaker, seed=i)
    return root


def cpc_labels(root: Path, folder: Path, surplus: int = 0) -> Path:
    """CPC's three files on the utterances of train-clean-100: a phone class every 10 ms (and `surplus` of them more);
    each speaker's last utterance is for the test."""
    import soundfile

    files = sorted((root / SUBSETS[0]).rglob("*.flac"))
    lines = []
    for file in files:
        number, frames = int(file.stem[-1]), soundfile.info(file).frames // 160 + surplus
        lines.append(" ".join([file.stem, *(str((number + t // 10) % 41) for t in range(frames))]))
    last = max(file.stem[-1] for file in files)
    folder.mkdir(parents=True)
    (folder / "converted_aligned_phones.txt").write_text("\n".join(lines) + "\n")
    (folder / "train_split.txt").write_text("\n".join(f.stem for f in files if f.stem[-1] != last) + "\n")
    (folder / "test_split.txt").write_text("\n".join(f.stem for f in files if f.stem[-1] == last) + "\n")
    return folder


def librispeech(root: Path) -> dict[str, Any]:
    for subset in SUBSETS:
        utterances(root / "LibriSpeech", subset, (33000, 33800))
    paths = {"data.init_args.root": root / "LibriSpeech", "data.init_args.tables": root / "tables"}
    return {"model.init_args.encoder": ENCODER} | BATCH | paths


def filterbank(root: Path) -> dict[str, Any]:
    return librispeech(root) | {"model.init_args.encoder": {"input_dim": 240, **ENCODER}}


def stored(root: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    for subset in SUBSETS:
        (root / subset).mkdir()
        rows = [",file_path,length,label"]
        for i in range(2):
            np.save(root / subset / f"{i}.npy", rng.standard_normal((210 + i, 40)).astype("float32"))
            rows.append(f"{i},{subset}/{i}.npy,{210 + i},None")
        (root / f"{subset}.csv").write_text("\n".join(rows))
    return {"model.init_args.encoder": {"input_dim": 40, **ENCODER}, "data.init_args.root": root} | BATCH


def commands(root: Path) -> Path:
    """root/train: three words, two background recordings, the lists; root/test: the official test archive."""
    for word in ("yes", "marvin", "_background_noise_"):
        for i in range(4):
            write.wav(root / "train" / word / f"{i}.wav", 24000 if word.startswith("_") else 8000, seed=i)
    for word in ("yes", "_unknown_", "_silence_"):
        write.wav(root / "test" / word / "0.wav", 8000)
    (root / "train" / "testing_list.txt").write_text("yes/0.wav\n")
    (root / "train" / "validation_list.txt").write_text("yes/1.wav\nmarvin/1.wav\n")
    return root


def _probe(root: Path, data: dict[str, Any]) -> dict[str, Any]:
    best = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": str(root / "best")}}]
    fixed = {"model.init_args.checkpoint": released(root / "encoder.ckpt"), "trainer.val_check_interval": 1}
    return fixed | BATCH | {"trainer.callbacks": best} | {f"data.init_args.{key}": value for key, value in data.items()}


def probe(root: Path) -> dict[str, Any]:
    corpus = utterances(root / "LibriSpeech")
    labels = cpc_labels(corpus, root / "labels")
    return _probe(root, {"root": corpus, "labels": labels, "tables": root / "tables"})


def keyword(root: Path) -> dict[str, Any]:
    commands(root)
    return _probe(root, {"root": root / "train", "test_root": root / "test"})


FIXTURES = {
    "paper_fbank_100h.yaml": filterbank,
    "paper_fmllr_960h.yaml": stored,
    "paper_keyword.yaml": keyword,
    "paper_*h.yaml": librispeech,
    "paper_*.yaml": probe,
}


def tiny() -> tuple[dict[str, Any], torch.Tensor]:
    """A module as a config describes it, and a batch for the encoder that is exported from it."""
    arguments = {"encoder": ENCODER, "optim": {"lr": 1e-3}}
    return {"class_path": "papers.tera.module.PretrainModule", "init_args": arguments}, torch.randn(3, 20, 80)
