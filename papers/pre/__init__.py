"""PRE: prompt learning on a frozen CLIP through a reparameterisation encoder (2309.07760)."""
