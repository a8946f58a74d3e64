"""Trains DupMAE: python -m papers.dupmae.train fit --config papers/dupmae/configs/smoke.yaml"""

from common.training.cli import main

if __name__ == "__main__":
    main()
