"""`python -m tubelet`."""

from tubelet.cli import main

if __name__ == "__main__":
    main()
