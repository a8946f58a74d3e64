"""BARTScore: generated text judged by its likelihood under BART (Yuan, Neubig, Liu 2021, arXiv 2106.11520)."""
