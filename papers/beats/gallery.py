"""Gallery: a spectrogram and the tokens its patches get, from the random projection and from a distilled tokenizer."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.gallery import Gallery, Spectrogram, png
from common.training.run import Run
from common.worlds.sounds import CLASSES
from papers.beats.claims import FRAMES, MELS, PATCH, Plan
from papers.beats.data import SoundsData
from papers.beats.iterations import train_encoder, train_tokenizer
from papers.beats.tokenizers import RandomProjectionTokenizer

PLAN = Plan(dim=64, depth=2, num_codes=64, encoder_steps=80, tokenizer_steps=160, batch_size=32)
CLIPS, SHOWN = 200, 2


def gallery(folder: Path, seed: int = 0) -> Gallery:
    """The first validation clips with the tokens of both tokenizers."""
    data = SoundsData(batch_size=PLAN.batch_size, num_clips=CLIPS, frames=FRAMES, num_mel_bins=MELS, seed=seed)
    data.setup()

    run = Run("beats", "gallery", "distilled", seed, "cpu", folder)
    settings = PLAN.settings
    encoder = train_encoder(run, data.train, settings, PLAN.encoder_steps, name="encoder1")
    distilled = train_tokenizer(
        run, data.train, PLAN.settings, PLAN.tokenizer_steps, name="tokenizer2", teacher=encoder
    )
    random = RandomProjectionTokenizer(patch_size=PATCH, dim=32, num_codes=PLAN.num_codes)
    items = []
    for index in range(SHOWN):
        clip, label = data.valid[index]
        sound = CLASSES[int(label)].replace("_", " ")
        for name, tokenizer in (("random projection", random), ("distilled", distilled)):
            items.append(_item(tokenizer, name, clip, sound))
    trained = (
        f"An encoder after {PLAN.encoder_steps} steps on the random projection's tokens and a tokenizer distilled from "
        f"it in {PLAN.tokenizer_steps} steps, {PLAN.batch_size} crops of generated sounds a step, "
        f"{PLAN.num_codes} codes."
    )
    return Gallery(trained=trained, items=items)


def _item(tokenizer: Any, name: str, clip: Tensor, sound: str) -> Spectrogram:
    """clip: (T, M), normalised."""
    codes = tokenizer.tokenize(clip[None, None])[0].view(FRAMES // PATCH, MELS // PATCH)
    low, high = torch.quantile(clip, torch.tensor([0.02, 0.98]))
    return Spectrogram(
        title=f"{sound.capitalize()}, {name} tokens",
        caption=f"A {FRAMES / 100:.2f} s crop of a generated sound ({sound}) as {MELS} log-mel bands, and the code of "
        f"each patch of {PATCH} x {PATCH}: {len(codes.unique())} different codes out of {tokenizer.num_codes}.",
        png=png(((clip - low) / (high - low)).T.flip(0).numpy()),
        tokens=codes.T.flip(0).tolist(),
    )
