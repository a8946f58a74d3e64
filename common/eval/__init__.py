"""Protocols shared by papers: linear probe, kNN, retrieval, zero-shot, multi-view averaging, ROUGE.

Import the module you need.
"""
