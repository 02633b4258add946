"""`python -m evaluate`: evaluate checkpoints on a suite (see `evaluate.run`)."""

from evaluate.run import main

if __name__ == "__main__":
    main()
