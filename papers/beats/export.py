"""BEATs' encoder to use elsewhere, pre-trained or fine-tuned.

The directory holds the tensors and the fields of the released layout: torch.save({"cfg": config, "model": tensors})
makes a file that the authors' code reads.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from common.formats.audio import load_audio
from common.interop import load_config, save_weights
from common.interop.checkpoint import Checkpoint
from common.interop.encoder import Encoded, Exported, mean_over
from papers.beats import interop
from papers.beats import model as beats
from papers.beats.data import SAMPLE_RATE, spectrogram

MELS = "num_mel_bins"
WINDOW = 992  # frames: 62 rows of patches, AudioSet's ten seconds
LONGEST = 600  # seconds of one file


class BEATsEncoder(Exported):
    """Batches are log-mel spectrograms (B, 1, T, M) float, a frame every 10 ms, normalised as `read` does; where clips
    were padded to one length, {"spectrogram": (B, 1, T, M), "frames": (B,) valid frames of each}.

    tokens (B, N, D): one a patch, time-major, in windows of the ten seconds of pre-training that do not see each other;
    pooled (B, D): their mean over audio, without padding.
    """

    kind = "audio"
    model_types = ("beats",)
    prefixes = ("model.encoder.", "encoder.")  # of FineTuneModule, of PretrainModule
    layout = interop.LAYOUT
    model: beats.Encoder
    num_mel_bins = 128

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        encoder = super().from_checkpoint(checkpoint)
        data = (checkpoint.config.get("data") or {}).get("init_args") or {}
        encoder.num_mel_bins = data.get(MELS, 128)
        return encoder

    @classmethod
    def build(cls, checkpoint: Checkpoint) -> beats.Encoder:
        return beats.Encoder(**(checkpoint.argument("encoder") or {}))

    @classmethod
    def from_hub(cls, directory: str | Path) -> Self:
        encoder = super().from_hub(directory)
        encoder.num_mel_bins = load_config(directory).get(MELS, 128)
        return encoder

    @classmethod
    def from_config(cls, config: dict[str, Any], directory: str | Path) -> beats.Encoder:
        return beats.Encoder(**interop.read_sizes(config, directory))

    def config(self) -> dict[str, Any]:
        sizes = {interop.SIZES[name]: value for name, value in interop.encoder_sizes(self.model).items()}
        return {MELS: self.num_mel_bins, "finetuned_model": False} | sizes | interop.DESIGN

    def to_hub(self, directory: str | Path) -> None:
        save_weights(directory, interop.released(self.model), {"model_type": self.model_types[0], **self.config()})

    def encode(self, batch: Tensor | dict[str, Tensor]) -> Encoded:
        padded = batch if isinstance(batch, dict) else {"spectrogram": batch}
        p = self.model.patch_size
        spectrogram, padding = beats.crop_to_patches(padded["spectrogram"], p), None
        frames, mels = spectrogram.shape[-2:]
        if "frames" in padded:
            padding = beats.token_padding(padded["frames"], frames, mels, p)
        rows = WINDOW // p
        windows = spectrogram.split(rows * p, dim=2)
        paddings = [None] * len(windows) if padding is None else padding.split(rows * (mels // p), dim=1)
        tokens = torch.cat([self.model(x, absent) for x, absent in zip(windows, paddings)], dim=1)
        return mean_over(tokens, None if padding is None else ~padding)

    def read(self, path: str | Path) -> Tensor:
        """An audio file -> (T, M): mono at 16 kHz, Kaldi filterbank, (x - mean) / (2 std) of AudioSet, whole patches.

        A last patch that audio fills in part would be dropped from a clip alone, but kept among longer ones.
        """
        waveform, _ = load_audio(path, SAMPLE_RATE, longest=LONGEST)
        clip = spectrogram(waveform, self.num_mel_bins, name=str(path))
        return beats.crop_to_patches(clip, self.model.patch_size)

    def collate(self, items: Sequence[Tensor]) -> dict[str, Tensor]:
        frames = torch.tensor([len(item) for item in items])
        padded = [F.pad(item, (0, 0, 0, int(frames.max()) - len(item))) for item in items]
        return {"spectrogram": torch.stack(padded)[:, None], "frames": frames}


ENCODER = BEATsEncoder
