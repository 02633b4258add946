"""`python -m pretrain`: train a backbone (see `pretrain.train`)."""

from pretrain.train import main

if __name__ == "__main__":
    main()
