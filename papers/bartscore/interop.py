"""Published scorers: a BART from a local hub directory, and tuned weights (bart.pth) over it.

    python -m papers.bartscore.interop LAST.CKPT BART_LARGE_CNN OUT

writes a scorer trained here as a hub directory, which the official BARTScorer(checkpoint=OUT) opens too.
"""

import sys
from pathlib import Path

from common.errors import EncoreError
from common.interop import check_and_load, load_config, load_weights
from papers.bart import interop
from papers.bart.model import BART
from papers.bartscore.model import BARTScorer


def load(checkpoint: str | Path, weights: str | Path | None = None) -> BARTScorer:
    """The scorer of a hub directory (facebook/bart-large, bart-large-cnn, ...), in eval mode.

    weights: a tuned state over it, see load_weights_into. EncoreError when it is no BART that writes text.
    """
    bart = interop.load(checkpoint)
    if not isinstance(bart, BART):
        raise EncoreError(f"{checkpoint}: has a head that classifies; a scorer needs a BART that writes text")
    scorer = BARTScorer(bart)
    if weights is not None:
        load_weights_into(scorer, weights)
    return scorer.eval()


def load_into(scorer: BARTScorer, checkpoint: str | Path) -> None:
    """Weights of a hub directory into a scorer of that size."""
    interop.load_into(scorer.bart, checkpoint)


def load_weights_into(scorer: BARTScorer, weights: str | Path) -> None:
    """Tuned weights into a scorer: the released bart.pth, what the official training script saves (its names begin
    with one more `model.`), or a training checkpoint of this repository.
    """
    state = load_weights(weights)
    if any(name.startswith("scorer.") for name in state):
        check_and_load(scorer, _own(state), weights)
        return
    if all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): value for name, value in state.items()}
    check_and_load(scorer.bart, interop.from_hub(state, weights), weights)


def _own(state: dict) -> dict:
    return {name.removeprefix("scorer."): value for name, value in state.items() if name.startswith("scorer.")}


def save(scorer: BARTScorer, directory: str | Path) -> None:
    """A hub directory that transformers' BartForConditionalGeneration opens."""
    interop.save(scorer.bart, directory)


def export(weights: str, checkpoint: str, directory: str) -> None:
    """Tuned weights over a hub directory, written as a hub directory with the same tokenizer files."""
    load_config(checkpoint)
    save(load(checkpoint, weights), directory)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        file = Path(checkpoint) / name
        if file.is_file():
            (Path(directory) / name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        export(*sys.argv[1:])
    except EncoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
