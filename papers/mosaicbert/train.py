"""Trains MosaicBERT: python -m papers.mosaicbert.train fit --config papers/mosaicbert/configs/smoke.yaml"""

from common.training.cli import main

if __name__ == "__main__":
    main()
