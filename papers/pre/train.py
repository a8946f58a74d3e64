"""Train or evaluate prompts: python -m papers.pre.train fit --config papers/pre/configs/cpu.yaml"""

from common.training.cli import main

if __name__ == "__main__":
    main()
