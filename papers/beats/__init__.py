"""BEATs: audio pre-training with acoustic tokenizers (Chen et al., ICML 2023, arXiv 2212.09058)."""
