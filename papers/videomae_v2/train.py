"""Train or test VideoMAE V2: python -m papers.videomae_v2.train fit --config papers/videomae_v2/configs/cpu.yaml"""

from common.training.cli import main

if __name__ == "__main__":
    main()
