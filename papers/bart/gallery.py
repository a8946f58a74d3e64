"""Gallery: held-out text, the same with spans gone behind masks, and what a tiny BART writes for it."""

from pathlib import Path

from common.gallery import Gallery, Sentences
from common.training.run import Run
from papers.bart.claims import NOISES, RECIPES, pretrain, wikitext
from papers.bart.data import Denoised, pad
from papers.bart.generate import Decoding, generate
from papers.bart.model import BOS, EOS, PAD

RECIPE = RECIPES["cpu"]
SHOWN = 8


def gallery(folder: Path, seed: int = 0) -> Gallery:
    """The first held-out blocks of WikiText-2, corrupted as in pre-training and restored greedily."""
    text = wikitext(RECIPE)
    bart = pretrain(Run("bart", "gallery", "infilling", seed, "cpu", folder), RECIPE, text)
    assert bart is not None
    pairs = [Denoised(text.held_out, text.vocabulary, NOISES["infilling"], epoch=0)[index] for index in range(SHOWN)]
    longest = int(bart.config["max_positions"])
    written, _ = generate(bart, pad([source for source, _ in pairs]), Decoding(max_length=longest))

    def shown(ids: list[int]) -> str:
        """The text of a block, its masks included."""
        return text.tokenizer.decode([i for i in ids if i not in (BOS, EOS, PAD)], skip_special=False).strip()

    rows = [
        [shown(row.tolist()) for row in (original, source, output)]
        for (source, original), output in zip(pairs, written)
    ]
    item = Sentences(
        title="Text infilling",
        caption="Held-out text of WikiText-2. Spans of 0 to several words, 30 % of all words, stand behind one "
        "mask each; "
        f"BART writes the whole text anew. It restores {sum(row[0] == row[2] for row in rows)} of {len(rows)} exactly.",
        columns=["original", "corrupted", "BART's text"],
        rows=rows,
    )
    trained = (
        f"A tiny BART after {RECIPE.pretraining_steps} steps of {RECIPE.batch_size} blocks of {RECIPE.block_length} "
        "tokens, which is far too little to know facts."
    )
    return Gallery(trained=trained, items=[item])
