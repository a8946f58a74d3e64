"""Protocols shared by papers: linear probe, kNN, retrieval, zero-shot, classification and averaged views, ROUGE.

Import the module you need.
"""
