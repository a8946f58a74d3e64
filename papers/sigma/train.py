"""Trains SIGMA: python -m papers.sigma.train fit --config papers/sigma/configs/cpu.yaml"""

from common.training.cli import main

if __name__ == "__main__":
    main()
