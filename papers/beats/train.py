"""Train one stage from a config: python -m papers.beats.train fit --config papers/beats/configs/smoke.yaml"""

from common.training.cli import main

if __name__ == "__main__":
    main()
