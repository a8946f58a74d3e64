"""Nearest class means over a frozen encoder for continual learning (Janson et al., 2022, arXiv 2210.04428)."""
