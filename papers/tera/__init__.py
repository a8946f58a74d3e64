"""TERA: self-supervised learning of Transformer encoder representation for speech (Liu, Li, Lee, TASLP 2021)."""
