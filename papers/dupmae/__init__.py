"""DupMAE (RetroMAE v2): an encoder whose [CLS] and ordinary tokens both learn to hold the text (arXiv 2211.08769)."""
