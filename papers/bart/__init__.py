"""BART: a sequence-to-sequence Transformer pre-trained by undoing noise (Lewis et al. 2019, arXiv 1910.13461)."""
