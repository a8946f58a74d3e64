"""Train or validate CLIP: python -m papers.clip.train fit --config papers/clip/configs/cpu.yaml"""

from common.training.cli import main

if __name__ == "__main__":
    main()
