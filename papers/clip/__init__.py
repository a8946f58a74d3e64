"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al. 2021)."""
