"""VideoMAE V2: Scaling Video Masked Autoencoders with Dual Masking (Wang et al. 2023)."""
