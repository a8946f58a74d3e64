"""Pre-train or probe from a config: python -m papers.tera.train fit --config papers/tera/configs/smoke.yaml"""

from common.training.cli import main

if __name__ == "__main__":
    main()
