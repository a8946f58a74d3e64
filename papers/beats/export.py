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

from common.errors import EncoreError
from common.interop import check_and_load, load_weights, save_weights
from common.interop.checkpoint import Checkpoint
from common.interop.encoder import Encoded, Encoder, expect, mean_over
from papers.beats import interop
from papers.beats import model as beats

MELS = "num_mel_bins"


class BEATsEncoder(Encoder):
    """Batches are log-mel spectrograms (B, 1, T, M) float, a frame every 10 ms, normalised as `read` does; where clips
    were padded to one length, {"spectrogram": (B, 1, T, M), "frames": (B,) valid frames of each}.

    tokens (B, N, D): one a patch, time-major; pooled (B, D): their mean over audio, without padding.
    """

    kind = "audio"

    def __init__(self, model: beats.Encoder, num_mel_bins: int = 128) -> None:
        super().__init__()
        self.model: beats.Encoder = model
        self.num_mel_bins = num_mel_bins

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        model = beats.Encoder(**(checkpoint.argument("encoder") or {}))
        prefixes = ("model.encoder.", "encoder.")  # of FineTuneModule, of PretrainModule
        prefix = next((p for p in prefixes if any(name.startswith(p) for name in checkpoint.state)), "encoder.")
        check_and_load(model, checkpoint.part(prefix), checkpoint.path)
        data = (checkpoint.config.get("data") or {}).get("init_args") or {}
        return cls(model, data.get(MELS, 128))

    @classmethod
    def from_hub(cls, directory: str | Path) -> Self:
        cfg = expect(directory, "beats")
        missing = [field for field in interop.SIZES.values() if field not in cfg]
        other = [field for field, wanted in interop.DESIGN.items() if cfg.get(field, wanted) != wanted]
        if missing or other:
            raise EncoreError(
                f"{directory}: config.json is not that of a BEATs built here: {', '.join(missing + other)}"
            )
        model = beats.Encoder(**{ours: cfg[theirs] for ours, theirs in interop.SIZES.items()})
        state = interop.encoder_from_released(load_weights(directory), cfg[interop.SIZES["depth"]])
        check_and_load(model, state, directory)
        return cls(model, cfg.get(MELS, 128))

    def to_hub(self, directory: str | Path) -> None:
        sizes = interop.encoder_sizes(self.model)
        config: dict[str, Any] = {"model_type": "beats", MELS: self.num_mel_bins, "finetuned_model": False}
        config |= {interop.SIZES[name]: value for name, value in sizes.items()} | interop.DESIGN
        save_weights(directory, interop.encoder_to_released(self.model.state_dict(), sizes["depth"]), config)

    def encode(self, batch: Tensor | dict[str, Tensor]) -> Encoded:
        padded = batch if isinstance(batch, dict) else {"spectrogram": batch}
        spectrogram, padding = padded["spectrogram"], None
        if "frames" in padded:
            frames, mels = spectrogram.shape[-2:]
            padding = beats.token_padding(padded["frames"], frames, mels, self.model.patch_size)
        return mean_over(self.model(spectrogram, padding), None if padding is None else ~padding)

    def read(self, path: str | Path) -> Tensor:
        """An audio file -> (T, M): mono at 16 kHz, Kaldi filterbank, (x - mean) / (2 std) of AudioSet, whole patches.

        A last patch that audio fills in part would be dropped from a clip alone, but kept among longer ones.
        """
        from common.formats.audio import load_audio
        from papers.beats.data import SAMPLE_RATE, spectrogram

        waveform, _ = load_audio(path, SAMPLE_RATE)
        clip = spectrogram(waveform, self.num_mel_bins, name=str(path))
        return beats.crop_to_patches(clip, self.model.patch_size)

    def collate(self, items: Sequence[Tensor]) -> dict[str, Tensor]:
        frames = torch.tensor([len(item) for item in items])
        padded = [F.pad(item, (0, 0, 0, int(frames.max()) - len(item))) for item in items]
        return {"spectrogram": torch.stack(padded)[:, None], "frames": frames}


ENCODER = BEATsEncoder
