"""Trains BART: python -m papers.bart.train fit --config papers/bart/configs/smoke.yaml"""

from common.training.cli import main

if __name__ == "__main__":
    main()
