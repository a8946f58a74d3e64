"""Pointer Networks (Vinyals, Fortunato & Jaitly, 2015): attention weights as the output distribution, over any number
of inputs.
"""
