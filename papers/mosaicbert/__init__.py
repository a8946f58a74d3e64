"""MosaicBERT: a BERT rebuilt for fast pre-training (Portes et al., NeurIPS 2023, arXiv 2312.17482)."""
