"""Train from a config: python -m papers.pointer_networks.train fit --config papers/pointer_networks/configs/cpu.yaml"""

from common.training.cli import main

if __name__ == "__main__":
    main()
