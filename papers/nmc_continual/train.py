"""Run a stream or the small pre-training: python -m papers.nmc_continual.train fit --config CONFIG"""

from common.training.cli import main

if __name__ == "__main__":
    main()
